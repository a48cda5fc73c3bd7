"""Preflight's check of artefacts: what the roles install is declared, with its checksum."""

from __future__ import annotations

import collections.abc as c
import difflib

from .artifacts import validate_artifacts
from .platform_model import Host, Platform
from .preflight_problems import Problem


def check_artifacts(platform: Platform) -> list[Problem]:
    """Every artefact is declared completely, with its checksum, and every one that a role installs is declared."""
    problems = []
    for host in platform.hosts.values():
        declared: set[str] = set()
        for variable in ("devmentor_artifacts", "devmentor_artifacts_generated"):
            artifacts = host.values.get(variable)
            if isinstance(artifacts, dict):
                declared |= {str(name) for name in artifacts}
                problems += [
                    Problem(
                        (host.name,),
                        f"{variable}.{found.artifact}",
                        found.message.rstrip("."),
                        found.remedy.rstrip("."),
                    )
                    for found in validate_artifacts(artifacts)
                ]
        for role, options in platform.specs.items():
            if host.name in platform.role_hosts(role):
                problems += _undeclared_artifacts(platform, host, options, declared)
    return problems


def _undeclared_artifacts(
    platform: Platform, host: Host, options: c.Iterable[str], declared: set[str]
) -> list[Problem]:
    problems = []
    for name, artifact in _named(host, options):
        if isinstance(artifact, str) and artifact and artifact not in declared:
            close = difflib.get_close_matches(artifact, sorted(declared), 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append(
                Problem(
                    (host.name,),
                    name,
                    f"names the artefact {artifact}, which is not declared{hint}",
                    f"declare it in {platform.inventory}/group_vars/all/artifacts.yml, or make the lab's: make models",
                )
            )
    return problems


def _named(host: Host, options: c.Iterable[str]) -> c.Iterator[tuple[str, object]]:
    """The artefacts that a host's variables name: one in `*_artifact`, several in `*_artifacts`."""
    for name in options:
        value = host.values.get(name)
        if name.endswith("_artifact"):
            yield name, value
        elif name.endswith("_artifacts") and isinstance(value, list):
            yield from ((name, item) for item in value)
