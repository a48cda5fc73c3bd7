"""Preflight's check of package versions: each is of a package that the platform installs, and could be one."""

from __future__ import annotations

import difflib
import re

from .platform_model import Platform
from .preflight_problems import Problem

VARIABLE = "devmentor_package_versions"
# Debian policy 5.6.12: [epoch:]upstream[-revision], beginning with a digit.
_VERSION = re.compile(r"(\d+:)?\d[A-Za-z0-9.+~:-]*")


def check_package_versions(platform: Platform) -> list[Problem]:
    """Versions of packages that the platform does not install, and what is no Debian version."""
    problems = []
    for host in platform.hosts.values():
        wanted, lists = host.values.get(VARIABLE), host.values.get("devmentor_packages")
        if not isinstance(wanted, dict) or not isinstance(lists, dict):
            continue  # said by the check of types
        known = sorted({str(name) for names in lists.values() for name in names or ()})
        for name, version in wanted.items():
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                text, remedy = f"is of no package that the platform installs{hint}", "correct the name, or remove it"
            elif not isinstance(version, str) or not _VERSION.fullmatch(version):
                text = f"is {version!r}, no Debian version" if version else "is empty"
                remedy = f"give it one of `apt-cache madison {name}`, in quotes, or remove it"
            else:
                continue
            problems.append(Problem((host.name,), f"{VARIABLE}.{name}", text, remedy))
    return problems
