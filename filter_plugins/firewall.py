"""From the communication matrix to an nftables rule set. Pure functions, tested in tests/unit/firewall."""

from __future__ import annotations

import difflib
import ipaddress
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

# Filters run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from module_utils.devmentor.platform_model import STANDBY

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Words of a matrix entry's `to` and `from` that are not inventory groups.
WORDS = {"all", "any", "self", "control"}
VRRP = 112  # IP protocol number; a minimal host has no /etc/protocols to take the name from


class Entry(TypedDict):
    """A row of devmentor_communication_matrix. `protocols` is [tcp] where absent."""

    to: str
    ports: list[str]
    protocols: NotRequired[list[str]]


class Extra(TypedDict):
    """A site's own opening: port numbers, addresses or networks."""

    ports: list[int]
    sources: list[str]
    protocols: NotRequired[list[str]]
    comment: NotRequired[str]


class FirewallError(ValueError):
    """A matrix, address or variable that gives no rule set; the message names it and the remedy."""


def _close(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {match[0]}?" if match else ""


def network(text: str, where: str) -> Network:
    """An address or network. Raises FirewallError on a name or nonsense: rules hold addresses only."""
    try:
        return ipaddress.ip_network(str(text), strict=False)
    except ValueError as error:
        raise FirewallError(f"{where}: {text!r} is neither an address nor a network ({error}).") from error


def members(group: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Hosts of a group, those that stand by for it included."""
    return sorted({*groups.get(group, []), *groups.get(STANDBY.get(group, ""), [])})


def check_matrix(matrix: Sequence[Mapping[str, Any]], ports: Mapping[str, int], known_groups: Iterable[str]) -> None:
    """Raises FirewallError where a row names a port or group that does not exist."""
    known = {*known_groups, *WORDS}
    for number, row in enumerate(matrix, 1):
        where = f"devmentor_communication_matrix, row {number}"
        for port in row["ports"]:
            if port not in ports:
                raise FirewallError(f"{where}: port {port!r} is not in devmentor_ports.{_close(port, ports)}")
        for word in [row["to"], *row["from"]]:
            if word not in known:
                raise FirewallError(f"{where}: group {word!r} is not known.{_close(word, known)}")


def sources(
    row: Mapping[str, Any], groups: Mapping[str, Sequence[str]], addresses: Mapping[str, str], control: Sequence[str]
) -> dict[str, list[Network]]:
    """Source name -> networks of a row; `any` -> []. A group without hosts is left out."""
    result: dict[str, list[Network]] = {}
    for word in row["from"]:
        if word == "any":
            result["any"] = []
            continue
        name = row["to"] if word == "self" else word
        if name == "control":
            found = [network(text, "devmentor_control_addresses") for text in control]
        else:
            hosts = groups["all"] if name == "all" else members(name, groups)
            found = [network(addresses[host], f"host {host}, devmentor_address") for host in hosts]
        if found:
            result[name] = found
    return result


def _sets(named: Mapping[str, list[Network]]) -> list[str]:
    lines = []
    for name, networks in sorted(named.items()):
        for version in (4, 6):
            elements = sorted({str(part) for part in networks if part.version == version})
            if elements:
                plain = [item.removesuffix("/32" if version == 4 else "/128") for item in elements]
                lines += [
                    f"\tset {name}_{version} {{",
                    f"\t\ttype ipv{version}_addr",
                    "\t\tflags interval",
                    "\t\tauto-merge",
                    f"\t\telements = {{ {', '.join(plain)} }}",
                    "\t}",
                ]
    return lines


def _from(name: str, networks: list[Network]) -> list[str]:
    if name == "any":
        return [""]
    families = sorted({part.version for part in networks})
    return [f"{'ip' if version == 4 else 'ip6'} saddr @{name}_{version} " for version in families]


def ruleset(
    host: str,
    groups: Mapping[str, Sequence[str]],
    addresses: Mapping[str, str],
    matrix: Sequence[Mapping[str, Any]],
    ports: Mapping[str, int],
    control: Sequence[str],
    extra: Sequence[Extra] = (),
    log_drops: bool = True,
) -> str:
    """The nftables file of one host: its own table, replaced as a whole in one transaction, nothing else touched.

    `groups` is Ansible's (with `all`), `addresses` host -> address for all of them. What is not named is dropped.
    """
    check_matrix(matrix, ports, [*groups, *STANDBY, *STANDBY.values(), *(row["to"] for row in matrix)])
    named: dict[str, list[Network]] = {}
    rules: list[str] = []
    for row in matrix:
        if row["to"] != "all" and host not in members(row["to"], groups):
            continue
        numbers = ", ".join(str(ports[port]) for port in row["ports"])
        what = " ".join(row["ports"])
        for name, networks in sources(row, groups, addresses, control).items():
            named.setdefault(name, networks)
            for match in _from(name, networks):
                for protocol in row.get("protocols", ["tcp"]):
                    rules.append(f'{match}{protocol} dport {{ {numbers} }} accept comment "{what} from {name}"')
    for number, opening in enumerate(extra, 1):
        name = f"site_{number}"
        networks = [network(text, f"firewall_extra_rules, rule {number}") for text in opening["sources"]]
        named[name] = networks
        numbers = ", ".join(str(port) for port in opening["ports"])
        for match in _from(name, networks):
            for protocol in opening.get("protocols", ["tcp"]):
                comment = opening.get("comment", name)
                rules.append(f'{match}{protocol} dport {{ {numbers} }} accept comment "{comment}"')
    if host in members("gateway", groups):
        named["gateway"] = [network(addresses[name], f"host {name}") for name in members("gateway", groups)]
        rules += [f'{match}meta l4proto {VRRP} accept comment "VRRP"' for match in _from("gateway", named["gateway"])]
    drops = ['limit rate 10/minute burst 20 packets log prefix "devmentor drop: "'] if log_drops else []
    body = [
        "type filter hook input priority filter; policy drop;",
        'iif "lo" accept',
        "ct state vmap { established : accept, related : accept, invalid : drop }",
        "icmp type { destination-unreachable, echo-request, parameter-problem, time-exceeded } accept",
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request,"
        " mld-listener-query, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
        "ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
        *rules,
        *drops,
        "counter",
    ]
    return "\n".join(
        [
            "# Role firewall: the rows of devmentor_communication_matrix that end at this host.",
            "table inet devmentor",
            "delete table inet devmentor",
            "table inet devmentor {",
            *_sets(named),
            "\tchain input {",
            *(f"\t\t{line}" for line in body),
            "\t}",
            "}",
            "",
        ]
    )


def control_problem(control: Sequence[str], peer: str, host: str) -> str:
    """Why the rules would lock out the control node that is connected from `peer`; empty where they do not.

    An empty `peer` is a connection that is not SSH: it cannot be locked out, but nobody else could log in.
    """
    if not control:
        hint = f"; this run comes from {peer}" if peer else ""
        return (
            f"{host}: devmentor_control_addresses is empty, so nobody could log in after this. "
            f"Name the addresses or networks that operators come from{hint}."
        )
    networks = [network(text, "devmentor_control_addresses") for text in control]
    if not peer:
        return ""
    address = ipaddress.ip_address(peer.split("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    if any(mapped in part for part in networks):
        return ""
    return (
        f"{host}: this run comes from {mapped}, which is not in devmentor_control_addresses "
        f"({', '.join(map(str, control))}): it would lock itself out. Add the address or its network."
    )


def matrix_table(matrix: Sequence[Mapping[str, Any]], ports: Mapping[str, int]) -> str:
    """The matrix as a Markdown table, one line per port."""
    lines = ["| to | port | | from |", "| --- | --- | --- | --- |"]
    for row in matrix:
        origin = ", ".join(row["to"] if word == "self" else word for word in row["from"])
        protocols = "/".join(row.get("protocols", ["tcp"]))
        lines += [f"| {row['to']} | {ports[port]}/{protocols} | {port} | {origin} |" for port in row["ports"]]
    return "\n".join(lines)


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"firewall_ruleset": ruleset, "firewall_control_problem": control_problem}
