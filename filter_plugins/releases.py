"""Filters of the role python_release: which version of Python a host's release is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Debian's release -> its own Python, which releases are installed with.
PYTHONS = {"12": "3.11", "13": "3.13"}


def debian_python(facts: Mapping[str, Any]) -> str:
    """The Python of a host's Debian, from its facts; Debian 13's where they were not gathered (the host refuses a
    release that is for another)."""
    return PYTHONS.get(str(facts.get("distribution_major_version", "13")), PYTHONS["13"])


def release_pythons(hosts: Iterable[str], hostvars: Any) -> list[str]:
    """The versions of Python of these hosts, the newest first."""
    return sorted({debian_python(hostvars[host].get("ansible_facts") or {}) for host in hosts}, reverse=True)


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"debian_python": debian_python, "release_pythons": release_pythons}
