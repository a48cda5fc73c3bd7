"""Secrets for the scenarios' tests."""

import json

import pytest


@pytest.fixture(scope="module")
def secret_file(host):
    """Writes text with secrets, as a template, to a file on the host that only root reads; gone after the module.

    A command that testinfra runs is an argument of the host's login shell, which every user of the host can read, and
    of ssh on this machine. Ansible takes the template's text as an argument and carries the content in a file.
    """
    paths = []

    def write(name, template):
        path = f"/run/molecule-{name}"
        if path not in paths:
            arguments = {"dest": path, "mode": "0600", "content": template}
            host.ansible("copy", json.dumps(arguments), check=False)
            paths.append(path)
        return path

    yield write
    for path in paths:
        host.check_output("rm %s", path)
