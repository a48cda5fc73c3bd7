"""Preflight's checks of QWEN's token budgets: whose they are, what they say, and where they are counted."""

from __future__ import annotations

import collections.abc as c
import difflib
from typing import Any

from .platform_model import Host, Platform
from .preflight_problems import Problem

LIMITS = ("tokens_per_minute", "tokens_per_day")
_WHAT = "qwen_token_budgets"


def check_budgets(platform: Platform) -> list[Problem]:
    """Every budget belongs to a tenant that has a key and is a positive number of tokens; poolers are there."""
    problems = []
    for name in platform.role_hosts("qwen"):
        host = platform.hosts[name]
        budgets = host.values.get(_WHAT)
        if not isinstance(budgets, c.Mapping) or not budgets:
            continue  # another type is check_variables' to name
        problems += [problem for tenant in budgets for problem in _judge(host, str(tenant), budgets[tenant])]
        if not host.values.get("qwen_database_hosts"):
            problems.append(
                Problem(
                    (name,),
                    "qwen_database_hosts",
                    f"is empty, and {_WHAT} are counted in PostgreSQL",
                    "put hosts into the group pgbouncer, or name the poolers",
                )
            )
    return problems


def _judge(host: Host, tenant: str, limits: Any) -> list[Problem]:
    what = f"{_WHAT}.{tenant}"
    problems = []
    keys = host.values.get("qwen_api_keys")
    if not isinstance(keys, c.Mapping):
        if "qwen_api_keys" not in host.errors:  # which is reported by itself
            remedy = "leave it at its default, or give {tenant: key}"
            problems.append(Problem((host.name,), "qwen_api_keys", f"is no mapping, and {_WHAT} go by it", remedy))
    elif tenant not in keys:
        close = difflib.get_close_matches(tenant, [str(key) for key in keys], 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        remedy = "name a tenant of devmentor_tenants, or add it there and run make secrets"
        problems.append(Problem((host.name,), what, f"is a budget of a tenant that has no key{hint}", remedy))
    if not isinstance(limits, c.Mapping) or not limits or set(limits) - set(LIMITS):
        remedy = f"give it {' or '.join(LIMITS)}, or both"
        return [*problems, Problem((host.name,), what, f"has not exactly {' and/or '.join(LIMITS)}", remedy)]
    for limit, tokens in limits.items():
        if not str(tokens).isdecimal() or int(str(tokens)) < 1:
            text, remedy = f"{tokens!r} is not a positive number of tokens", "give it a whole number above 0"
            problems.append(Problem((host.name,), f"{what}.{limit}", text, remedy))
    return problems
