"""Preflight's checks of who is where: groups, zones, the first primary, addresses and ports."""

from __future__ import annotations

import collections.abc as c
import difflib
import ipaddress

from .platform_model import GROUP_SIZES, Platform
from .preflight_problems import Problem


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
        if "vllm" in mine and "vllm_artifacts" in host.values and not host.values["vllm_artifacts"]:
            problems.append(
                Problem(
                    (host.name,),
                    "vllm_artifacts",
                    "is empty, and the host is in group vllm",
                    f"name the model's files there, or take {host.name} out of vllm",
                )
            )
        if "vllm" in mine and not {"qwen", "qwen_standby"} & set(mine):
            problems.append(
                Problem(
                    (host.name,),
                    "group vllm",
                    "has a host without QWEN: its engine is on loopback, nobody could ask it",
                    f"put {host.name} into qwen or qwen_standby as well, or take it out of vllm",
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
        if group in ("qwen_standby", "vllm", "spare", "objectstore") or len(members) < 2:
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
