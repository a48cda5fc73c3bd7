"""A real run of ansible-playbook with the project's settings, and the report that it wrote."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.runs import ROOT, Run, run

HERE = Path(__file__).resolve().parent
HOSTS = ("web1", "web2", "db1")


@dataclass(frozen=True)
class Reported:
    """A run, the secret in its variables, the directory of its report."""

    run: Run
    secret: str
    directory: Path

    def path(self, kind: str) -> Path:
        [path] = self.directory.glob(f"*.{kind}")
        return path

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.path("json").read_text(encoding="utf-8"))
        return document


def inventory(directory: Path, secret: str = "") -> Path:
    """Hosts that are all this machine, with a secret among the variables as vault.yml holds them."""
    hosts = {name: {} for name in HOSTS}
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "vault_report_secret": secret,
        "databases": [{"name": "app", "password": secret + "-nested"}],
    }
    path = directory / "hosts.json"
    path.write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
    return path


def reported(playbook: Path, scratch: Path, *arguments: str, **env: str) -> Reported:
    """Runs a playbook with scratch/reports as the directory of its report."""
    secret = f"s3cr&t<{secrets.token_hex(12)}>"
    settings = {
        "DEVMENTOR_REPORT_DIR": str(scratch / "reports"),
        "ANSIBLE_LIBRARY": f"{HERE / 'pretended_library'}{os.pathsep}{ROOT / 'library'}",
        "ANSIBLE_FORKS": "3",
        **env,
    }
    command = ("ansible-playbook", "-i", str(inventory(scratch, secret)), str(playbook), *arguments)
    return Reported(run(*command, timeout=300, env=settings), secret, Path(settings["DEVMENTOR_REPORT_DIR"]))
