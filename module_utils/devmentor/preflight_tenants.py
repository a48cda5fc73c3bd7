"""Preflight's checks of what PBML's tenants may store and for how long it is kept: whose it is, and what it says."""

from __future__ import annotations

import collections.abc as c
import difflib
from typing import Any

from .platform_model import Host, Platform
from .preflight_problems import Problem

DEFAULT = "default"
FIELDS = {
    "pbml_quotas": {"bytes": "bytes", "documents": "documents", "turns": "turns"},
    "pbml_retention": {"documents_days": "days", "turns_days": "days"},
}
_MOST = 2**63 - 1
_MOST_DAYS = 36500  # PostgreSQL's times go no further back than its calendar


def check_tenant_limits(platform: Platform) -> list[Problem]:
    """Every entry is `default`'s or belongs to a tenant that has a key; its limits are whole numbers above 0."""
    problems = []
    for name in platform.role_hosts("pbml"):
        host = platform.hosts[name]
        for what in FIELDS:
            entries = host.values.get(what)
            if isinstance(entries, c.Mapping):  # another type is check_variables' to name
                problems += [p for tenant in entries for p in _judge(host, what, str(tenant), entries[tenant])]
    return problems


def _judge(host: Host, what: str, tenant: str, entry: Any) -> list[Problem]:
    where, fields = f"{what}.{tenant}", FIELDS[what]
    problems = []
    keys = host.values.get("pbml_tenants")
    if tenant != DEFAULT and isinstance(keys, c.Mapping) and tenant not in keys:
        close = difflib.get_close_matches(tenant, [DEFAULT, *(str(key) for key in keys)], 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        remedy = f"name a tenant of devmentor_tenants or {DEFAULT}, or add it there and run make secrets"
        problems.append(Problem((host.name,), where, f"is of a tenant that has no key{hint}", remedy))
    if not isinstance(entry, c.Mapping) or set(entry) - set(fields):
        names = ", ".join(fields)
        remedy = f"give it any of {names}; {{}} for no limit"
        return [*problems, Problem((host.name,), where, f"has something else than {names}", remedy)]
    for field, number in entry.items():
        unit = fields[field]
        most = _MOST_DAYS if unit == "days" else _MOST
        text = str(number)
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
            problem = f"{number!r} is not a number of {unit} from 1 to {most}"
            remedy = "give it a whole number, or leave it out for no limit"
            problems.append(Problem((host.name,), f"{where}.{field}", problem, remedy))
    return problems
