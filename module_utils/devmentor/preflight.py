"""What an inventory must be before any host is contacted: pure checks of groups, zones, variables and secrets.

The inventory comes in as plain data (`Platform`), every finding goes out as a `Problem`; nothing here reads a file or
a host. All checks run always, so an operator sees all problems at once.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import difflib
import ipaddress
import re
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .artifacts import validate_artifacts

# Group -> (fewest, most) hosts; None means no bound. The table of docs/architecture.md.
GROUP_SIZES: dict[str, tuple[int, int | None]] = {
    "gateway": (2, 2),
    "qwen": (3, 10),
    "qwen_standby": (0, None),
    "pbml": (3, 3),
    "cache": (2, 2),
    "qdrant": (3, 3),
    "postgres": (4, 4),
    "pgbouncer": (2, 2),
    "monitoring": (2, 2),
    "objectstore": (0, 1),
    "spare": (0, None),
}

# Role -> the groups on whose hosts it runs; a role that is not listed runs on the group of its name.
ROLE_GROUPS: dict[str, tuple[str, ...]] = {
    "platform": ("all",),
    "base": ("all",),
    "pki": ("all",),
    "firewall": ("all",),
    "exporters": ("all",),
    "pgbackrest": ("postgres",),
    "llamacpp": ("qwen", "qwen_standby", "pbml"),
    "qwen": ("qwen", "qwen_standby"),
    "prometheus": ("monitoring",),
    "alertmanager": ("monitoring",),
}

# What Ansible itself puts into a host's variables, and what is not ours to judge.
_FOREIGN = re.compile(
    r"^(ansible_|inventory_|lab_|vault_|molecule_|__)"
    r"|^(group_names|groups|hostvars|playbook_dir|omit|zone|environment|role_names|play_hosts|vars)$"
)
_UNDEFINED = re.compile(r"'(\w+)' is undefined")
_VAULT_REFERENCE = re.compile(r"\b(vault_\w+)\b(?!\s*\|\s*(?:ansible\.builtin\.)?(?:default|d)\b)")
_RANGE = re.compile(r"\bRange:?\s+(-?\d+(?:\.\d+)?)\s*(?:\.\.|to)\s*(-?\d+(?:\.\d+)?)")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One reason not to begin: on which hosts, about what, what is wrong, and what to do."""

    hosts: tuple[str, ...]
    what: str
    problem: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Host:
    """A host as the inventory describes it.

    `values` are the templated variables, role defaults included; `given` names those that the inventory or `-e` set;
    `errors` holds, for a variable that could not be templated, Ansible's reason; `hidden` names what holds secrets.
    """

    name: str
    groups: tuple[str, ...]
    values: c.Mapping[str, Any]
    given: frozenset[str] = frozenset()
    errors: c.Mapping[str, str] = dataclasses.field(default_factory=dict)
    hidden: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Platform:
    """The whole inventory and what the roles say about their variables.

    `specs`: role -> option -> its argument spec. `secrets`: role -> the vault_* names that its defaults refer to.
    `inventory` is how an operator names it in a remedy.
    """

    hosts: c.Mapping[str, Host]
    groups: c.Mapping[str, c.Sequence[str]]
    specs: c.Mapping[str, c.Mapping[str, c.Mapping[str, Any]]]
    secrets: c.Mapping[str, frozenset[str]]
    inventory: str = "inventories/lab"

    def members(self, group: str) -> list[str]:
        return list(self.hosts) if group == "all" else [h for h in self.groups.get(group, ()) if h in self.hosts]

    def role_hosts(self, role: str) -> list[str]:
        wanted = {host for group in ROLE_GROUPS.get(role, (role,)) for host in self.members(group)}
        return [host for host in self.hosts if host in wanted]

    @property
    def small_allowed(self) -> bool:
        return any(host.values.get("devmentor_allow_small") is True for host in self.hosts.values())


def vault_references(text: str) -> frozenset[str]:
    """The vault_* names that a text refers to without giving a default for them."""
    return frozenset(_VAULT_REFERENCE.findall(text))


def check_groups(platform: Platform) -> list[Problem]:
    """Sizes of the groups, and hosts that no tier would use."""
    problems = []
    for group, (fewest, most) in GROUP_SIZES.items():
        members = tuple(platform.members(group))
        if len(members) < fewest and not platform.small_allowed:
            problems.append(
                Problem(
                    members,
                    f"group {group}",
                    f"has {len(members)} hosts, the platform needs {fewest}",
                    f"add hosts to {group} in {platform.inventory}/hosts.yml, or set devmentor_allow_small: true on a "
                    "platform that may go down with one host",
                )
            )
        if most is not None and len(members) > most:
            problems.append(
                Problem(
                    members,
                    f"group {group}",
                    f"has {len(members)} hosts, at most {most} are supported",
                    f"take {len(members) - most} out of {group} in {platform.inventory}/hosts.yml",
                )
            )
    for host in platform.hosts.values():
        if not set(host.groups) & set(GROUP_SIZES):
            close = [name for group in host.groups for name in difflib.get_close_matches(group, GROUP_SIZES, 1)]
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append(
                Problem(
                    (host.name,),
                    "groups",
                    f"is in no group of the platform{hint}",
                    "put it into a group of docs/architecture.md, or into spare",
                )
            )
    return problems


def check_exclusive(platform: Platform) -> list[Problem]:
    """Groups that contradict each other on one host."""
    problems = []
    for host in platform.hosts.values():
        mine = [group for group in GROUP_SIZES if group in host.groups]
        others = [group for group in mine if group != "spare"]
        if "spare" in mine and others:
            problems.append(
                Problem(
                    (host.name,),
                    "groups spare and " + ", ".join(others),
                    "exclude each other: a spare host has no role yet",
                    f"take {host.name} out of spare, or out of {', '.join(others)}",
                )
            )
        if {"qwen", "qwen_standby"} <= set(mine):
            problems.append(
                Problem(
                    (host.name,),
                    "groups qwen and qwen_standby",
                    "exclude each other: a host that serves cannot be the surge of a rolling update",
                    f"leave {host.name} in one of them",
                )
            )
    return problems


def check_zones(platform: Platform) -> list[Problem]:
    """Every host names its zone, and no zone's loss takes a whole tier or a quorum."""
    missing = tuple(h.name for h in platform.hosts.values() if not str(h.values.get("zone") or "").strip())
    if missing:
        return [Problem(missing, "zone", "is not set", f"give the host `zone:` in {platform.inventory}/hosts.yml")]
    if platform.small_allowed:
        return []
    zone = {host.name: str(host.values["zone"]) for host in platform.hosts.values()}
    problems = []
    for group in GROUP_SIZES:
        members = platform.members(group)
        if group in ("qwen_standby", "spare", "objectstore") or len(members) < 2:
            continue
        counts = {z: [m for m in members if zone[m] == z] for z in sorted({zone[m] for m in members})}
        fullest = max(counts, key=lambda z: len(counts[z]))
        if group == "qdrant" and len(counts[fullest]) > 1:
            reason = "a zone with two peers of three takes the quorum with it"
        elif group == "postgres" and len(counts[fullest]) * 2 > len(members):
            reason = "a zone with most nodes takes the quorum with it"
        elif len(counts) == 1:
            reason = "its loss takes the whole tier"
        else:
            continue
        problems.append(
            Problem(
                tuple(counts[fullest]),
                f"zones of group {group}",
                f"{len(counts[fullest])} of {len(members)} hosts are in {fullest}: {reason}",
                "move a host of the group to another zone, or correct `zone:`",
            )
        )
    return problems


def check_bootstrap_primary(platform: Platform) -> list[Problem]:
    """The host that starts as PostgreSQL's primary is one of the group, and all hosts agree on it."""
    members = platform.members("postgres")
    named = {member: str(platform.hosts[member].values.get("postgres_bootstrap_primary") or "") for member in members}
    problems = []
    for value in sorted(set(named.values())):
        if value in members:
            continue
        close = difflib.get_close_matches(value, members, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        problems.append(
            Problem(
                tuple(member for member in members if named[member] == value),
                "postgres_bootstrap_primary",
                f"is {value!r}, which is not in group postgres{hint}" if value else "is not set",
                "name one of " + ", ".join(members),
            )
        )
    if not problems and len(set(named.values())) > 1:
        problems.append(
            Problem(
                tuple(members),
                "postgres_bootstrap_primary",
                f"differs between the hosts: {', '.join(sorted(set(named.values())))}",
                f"set it once, in {platform.inventory}/group_vars/all",
            )
        )
    return problems


def check_addresses(platform: Platform) -> list[Problem]:
    """Two hosts with one address, two services with one port, a virtual address that cannot work."""
    owners: dict[str, list[str]] = {}
    for host in platform.hosts.values():
        address = host.values.get("devmentor_address")
        if isinstance(address, str) and address:
            owners.setdefault(address, []).append(host.name)
    problems = [
        Problem(
            tuple(names),
            "devmentor_address",
            f"{address} is the address of more than one host",
            "give each host its own ansible_host or devmentor_address",
        )
        for address, names in owners.items()
        if len(names) > 1
    ]
    for host in platform.hosts.values():
        users: dict[int, list[str]] = {}
        ports = host.values.get("devmentor_ports")
        for name, port in ports.items() if isinstance(ports, dict) else ():
            users.setdefault(port, []).append(str(name))
        problems += [
            Problem(
                (host.name,), "devmentor_ports", f"{' and '.join(names)} have the same port {port}", "give each its own"
            )
            for port, names in users.items()
            if len(names) > 1
        ]
    return problems + _check_vip(platform, tuple(platform.members("gateway")), owners)


def _check_vip(platform: Platform, gateways: tuple[str, ...], owners: c.Mapping[str, list[str]]) -> list[Problem]:
    if not gateways or any("devmentor_vip" in platform.hosts[host].errors for host in gateways):
        return []  # one that cannot be evaluated is reported with the variables
    remedy = "set devmentor_vip to a free address of the gateways' network"
    vips = sorted({str(platform.hosts[host].values.get("devmentor_vip") or "") for host in gateways})
    if len(vips) > 1:
        return [Problem(gateways, "devmentor_vip", f"differs between the gateways: {', '.join(vips)}", remedy)]
    vip = vips[0]
    try:
        ipaddress.ip_address(vip)
    except ValueError:
        return [Problem(gateways, "devmentor_vip", f"is {vip!r}, not an address" if vip else "is not set", remedy)]
    if vip in owners:
        return [Problem(tuple(owners[vip]), "devmentor_vip", f"{vip} is the host's own address", remedy)]
    return []


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
    for name in options:
        artifact = host.values.get(name)
        if name.endswith("_artifact") and isinstance(artifact, str) and artifact and artifact not in declared:
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


def inspect(platform: Platform) -> list[Problem]:
    """Everything that can be known without contacting a host."""
    return [
        problem
        for check in (
            check_groups,
            check_exclusive,
            check_zones,
            check_bootstrap_primary,
            check_addresses,
            check_variables,
            check_secrets,
            check_artifacts,
        )
        for problem in check(platform)
    ]


def merge(problems: c.Iterable[Problem]) -> list[Problem]:
    """The same problem on several hosts is one problem."""
    hosts: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        known = hosts.setdefault((problem.what, problem.problem, problem.remedy), [])
        known += [host for host in problem.hosts if host not in known]
    return [Problem(tuple(names), *key) for key, names in hosts.items()]


def render(problems: c.Iterable[Problem], all_hosts: c.Collection[str]) -> str:
    """One line per problem: `host: what: problem. Remedy: remedy.`"""
    lines = []
    for problem in merge(problems):
        everywhere = not problem.hosts or (len(all_hosts) > 1 and set(problem.hosts) >= set(all_hosts))
        hosts = "all hosts" if everywhere else ",".join(sorted(problem.hosts, key=_natural))
        lines.append(f"{hosts}: {problem.what}: {problem.problem}. Remedy: {problem.remedy}.")
    return "\n".join(lines)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts lab2 before lab10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# --- what a host must offer: computed here, compared on the host (hostcheck.py) ---

# Debian 13 everywhere; these groups also run on Debian 12, because a GPU vendor's drivers may ask for it.
DEBIAN_12_GROUPS = frozenset({"qwen", "qwen_standby", "spare"})


def expectations(host: Host) -> dict[str, Any]:
    """What the groups of a host ask of the machine, in the form of `host_preflight`'s parameters."""
    groups = [group for group in GROUP_SIZES if group in host.groups]
    values = host.values
    scale = float(values.get("devmentor_resource_scale") or 1.0)
    ports: dict[str, str] = {}
    table = values.get("devmentor_ports") or {}
    for rule in values.get("devmentor_communication_matrix") or []:
        if rule["to"] in groups or rule["to"] == "all":
            ports.update({str(table[name]): name for name in rule["ports"] if name in table and name != "ssh"})
    return {
        "debian": ["12", "13"] if groups and set(groups) <= DEBIAN_12_GROUPS else ["13"],
        "needs": [
            {
                "group": group,
                "cores": round(float(need["cpu_min"]) * scale, 3),
                "memory_gib": round(float(need["memory_min_gib"]) * scale, 3),
            }
            for group, need in (values.get("devmentor_resources") or {}).items()
            if group in groups
        ],
        "disks": [
            {
                "path": disk["path"],
                "free_gib": float(disk.get("free_gib", 0)),
                "capacity_gib": float(disk.get("capacity_gib", 0)) * scale,
            }
            for disk in values.get("devmentor_disk_minimum") or []
            if not disk.get("groups") or set(disk["groups"]) & set(groups)
        ],
        "ports": ports,
        "units": sorted(
            {
                unit
                for group, footprint in (values.get("devmentor_footprint") or {}).items()
                if group in groups or group == "all"
                for unit in footprint.get("units", [])
            }
        ),
        "vip": str(values.get("devmentor_vip") or "") if "gateway" in groups else "",
    }
