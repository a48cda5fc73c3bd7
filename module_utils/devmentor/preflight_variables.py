"""Preflight's checks of variables and secrets, against the roles' argument specs and defaults."""

from __future__ import annotations

import collections.abc as c
import difflib
import re
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .platform_model import Host, Platform
from .preflight_problems import Problem

# What Ansible itself puts into a host's variables, and what is not ours to judge.
_FOREIGN = re.compile(
    r"^(ansible_|inventory_|lab_|vault_|molecule_|__)"
    r"|^(group_names|groups|hostvars|playbook_dir|omit|zone|environment|role_names|play_hosts|vars)$"
)
_UNDEFINED = re.compile(r"'(\w+)' is undefined")
_RANGE = re.compile(r"\bRange:?\s+(-?\d+(?:\.\d+)?)\s*(?:\.\.|to)\s*(-?\d+(?:\.\d+)?)")


def check_variables(platform: Platform) -> list[Problem]:
    """Unknown names, wrong types, choices and ranges, missing required ones: against every role's argument specs."""
    known = {name: spec for options in platform.specs.values() for name, spec in options.items()}
    problems = []
    for host in platform.hosts.values():
        for name in sorted(host.given):
            if _FOREIGN.match(name):
                continue
            if name not in known:
                problems += _unknown(platform, host, name, known)
            elif name in host.errors:
                problems += _unreadable(host, name)
            elif name in host.values:
                problems += _wrong_value(host, name, host.values[name], known[name])
    for role, options in platform.specs.items():
        for name, spec in options.items():
            hosts = tuple(
                host
                for host in platform.role_hosts(role)
                if name not in platform.hosts[host].values and name not in platform.hosts[host].errors
            )
            if spec.get("required") and hosts:
                problems.append(
                    Problem(
                        hosts,
                        name,
                        f"is not set, and role {role} needs it",
                        f"set it in {platform.inventory}/group_vars ({_expected(spec)})",
                    )
                )
    return problems


def _unknown(platform: Platform, host: Host, name: str, known: c.Mapping[str, Any]) -> list[Problem]:
    ours = name.startswith(("devmentor_", *(f"{role}_" for role in platform.specs)))
    close = difflib.get_close_matches(name, known, 1, cutoff=0.8 if ours else 0.9)
    if not ours and not close:
        return []
    hint = f" (did you mean {close[0]}?)" if close else ""
    remedy = f"rename it to {close[0]}, or remove it" if close else "remove it; each role's README lists what exists"
    return [Problem((host.name,), name, f"is a variable that no role knows{hint}", remedy)]


def _unreadable(host: Host, name: str) -> list[Problem]:
    """A variable that refers to what is not there. Facts are not there yet, missing secrets have their own check."""
    reason = host.errors[name]
    undefined = _UNDEFINED.search(reason)
    if "has no attribute" in reason or (undefined and undefined.group(1).startswith(("ansible_", "vault_"))):
        return []
    if undefined:
        gone = undefined.group(1)
        return [Problem((host.name,), name, f"refers to {gone}, which is not defined", f"define {gone}, or set {name}")]
    return [Problem((host.name,), name, f"cannot be evaluated: {reason}", "correct the expression")]


def _expected(spec: c.Mapping[str, Any]) -> str:
    if spec.get("choices"):
        return "one of " + ", ".join(str(choice) for choice in spec["choices"])
    text = str(spec.get("type", "str"))
    return f"{text} of {spec['elements']}" if spec.get("elements") else text


def _wrong_value(host: Host, name: str, value: Any, spec: c.Mapping[str, Any]) -> list[Problem]:
    if value is None and not spec.get("required"):
        return []
    hidden = bool(spec.get("no_log")) or name in host.hidden
    shown = "its value" if hidden else _shorten(repr(value))
    kind = type(value).__name__.removeprefix("_AnsibleTagged").lower()
    rule = {key: entry for key, entry in spec.items() if key not in ("required", "default", "description", "no_log")}
    expected = _expected(rule)
    remedy = f"give it {expected}" if rule.get("choices") else f"give it a value of type {expected}"
    result = ArgumentSpecValidator({name: rule}).validate({name: value})
    if result.error_messages:
        error = type(result.errors[0]).__name__
        if error == "ArgumentTypeError":
            text = f"{shown} is {kind}, not {expected}"
        elif error == "ArgumentValueError":
            text = f"{shown} is not {expected}"
        else:
            text = "does not fit its description" if hidden else result.error_messages[0].rstrip(".")
        return [Problem((host.name,), name, text, remedy)]

    bounds = value_range(name, spec)
    number = result.validated_parameters[name]
    if bounds and isinstance(number, (int, float)) and not bounds[0] <= number <= bounds[1]:
        low, high = bounds
        return [
            Problem(
                (host.name,),
                name,
                f"{shown} is outside of {low:g} to {high:g}",
                f"give it a value from {low:g} to {high:g}",
            )
        ]
    return []


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def value_range(name: str, spec: c.Mapping[str, Any]) -> tuple[float, float] | None:
    """A number's bounds: argument specs have none, so the description says `Range: A..B`; a port needs no words."""
    description = spec.get("description", "")
    text = " ".join(description) if isinstance(description, (list, tuple)) else str(description)
    found = _RANGE.search(text)
    if found:
        return float(found.group(1)), float(found.group(2))
    if name.endswith("_port") and spec.get("type") == "int":
        return 1.0, 65535.0
    return None


def check_secrets(platform: Platform) -> list[Problem]:
    """Every vault_* that a role's defaults, or a variable of the inventory, refers to has a value."""
    lacking: dict[str, set[str]] = {}
    for role, names in platform.secrets.items():
        for host in platform.role_hosts(role):
            for name in names:
                if not platform.hosts[host].values.get(name):
                    lacking.setdefault(name, set()).add(host)
    for entry in platform.hosts.values():
        for error in entry.errors.values():
            undefined = _UNDEFINED.search(error)
            if undefined and undefined.group(1).startswith("vault_"):
                lacking.setdefault(undefined.group(1), set()).add(entry.name)

    if not lacking:
        return []
    # One line for all of them: one command makes all, and a missing vault.yml is one problem, not twenty.
    hosts = tuple(host for host in platform.hosts if any(host in names for names in lacking.values()))
    wanted = {name for names in platform.secrets.values() for name in names}
    given = {g for host in hosts for g in platform.hosts[host].given if g.startswith("vault_")}
    hints = [
        f"{close[0]} is set, a misspelling of {name}?"
        for name in sorted(lacking)
        for close in [difflib.get_close_matches(name, sorted(given - wanted), 1, cutoff=0.85)]
        if close
    ]
    text = "the secret is missing" if len(lacking) == 1 else "the secrets are missing"
    return [
        Problem(
            hosts,
            ", ".join(sorted(lacking)),
            "; ".join([text, *hints]),
            f"make secrets INVENTORY={platform.inventory} (it adds what is missing and keeps what is there)",
        )
    ]
