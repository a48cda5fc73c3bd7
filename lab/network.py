"""The lab's bridge, its address range, and the way out to the machine's own network."""

from __future__ import annotations

import ipaddress
import json
from contextlib import suppress
from pathlib import Path

from lab import kernel
from lab.errors import NetworkError
from lab.names import Names
from lab.proc import run, succeeds
from lab.state import MACHINE_LOCK, LabRecord, Layout, locked, other_networks, save_record

FIRST_HOST = 10
GATEWAY, VIP = 1, 250


def network_of(number: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(f"10.77.{number}.0/24")


def gateway(number: int) -> str:
    return str(network_of(number)[GATEWAY])


def vip(number: int) -> str:
    return str(network_of(number)[VIP])


def address(number: int, index: int) -> str:
    return str(network_of(number)[FIRST_HOST + index])


def choose_number(in_use: list[ipaddress.IPv4Network], reserved: set[int], preferred: int | None = None) -> int:
    """The first N for which 10.77.N.0/24 overlaps nothing that the machine has an address in or a route to."""
    candidates = ([preferred] if preferred is not None else []) + list(range(256))
    for number in candidates:
        if number not in reserved and not any(network_of(number).overlaps(other) for other in in_use):
            return number
    raise NetworkError("no free /24 in 10.77.0.0/16", "take down labs that are not needed, or remove the route to it")


def networks_in_use(addresses: str, routes: str, own_bridge: str) -> list[ipaddress.IPv4Network]:
    """Parse `ip -json addr` and `ip -json route`, leaving out the lab's own bridge and the default route."""
    found: list[ipaddress.IPv4Network] = []
    for link in json.loads(addresses or "[]"):
        if link.get("ifname") == own_bridge:
            continue
        for entry in link.get("addr_info", []):
            if entry.get("family") == "inet":
                found.append(ipaddress.IPv4Network(f"{entry['local']}/{entry['prefixlen']}", strict=False))
    for route in json.loads(routes or "[]"):
        if route.get("dev") == own_bridge or route.get("dst") in (None, "default"):
            continue
        with suppress(ValueError):
            found.append(ipaddress.IPv4Network(route["dst"], strict=False))
    return found


def _in_use(names: Names) -> list[ipaddress.IPv4Network]:
    return networks_in_use(
        run(["ip", "-json", "-4", "addr"]), run(["ip", "-json", "-4", "route", "show", "table", "all"]), names.bridge
    )


def exists(interface: str) -> bool:
    return Path("/sys/class/net", interface).exists()


def bring_up(layout: Layout, record: LabRecord) -> int:
    """Make bridge, NAT and fault table, once; returns N of the 10.77.N.0/24 in use."""
    names = layout.names
    with locked(MACHINE_LOCK):
        number = record.network
        if number is None or not exists(names.bridge):
            # A reservation from before a reboot of the machine may have been taken by something else since.
            number = choose_number(_in_use(names), other_networks(layout), preferred=record.network)
        record.network = number
        save_record(layout, record)
        if not exists(names.bridge):
            run(["ip", "link", "add", names.bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"])
        if not succeeds(["ip", "link", "set", names.bridge, "up"]):
            raise NetworkError(f"bridge {names.bridge} cannot be brought up")
        run(["ip", "addr", "replace", f"{gateway(number)}/24", "dev", names.bridge])
        kernel.raise_settings()
    run(["nft", "-f", "-"], stdin=_ruleset(names, number))
    return number


def _ruleset(names: Names, number: int) -> str:
    net = network_of(number)
    return f"""
table ip {names.nat_table} {{}}
delete table ip {names.nat_table}
table ip {names.nat_table} {{
  chain post {{ type nat hook postrouting priority srcnat; ip saddr {net} ip daddr != {net} masquerade; }}
}}
table bridge {names.cut_table} {{
  set alone {{ type ifname; }}
  set peerless {{ type ifname; }}
  set pair {{ type ifname . ifname; }}
}}
flush table bridge {names.cut_table}
table bridge {names.cut_table} {{
  chain forward {{
    type filter hook forward priority 0;
    iifname @alone drop
    oifname @alone drop
    iifname @peerless drop
    oifname @peerless drop
    ether type != arp iifname . oifname @pair drop
  }}
  chain input {{ type filter hook input priority 0; iifname @alone drop; }}
  chain output {{ type filter hook output priority 0; oifname @alone drop; }}
}}
"""


def take_down(names: Names) -> None:
    """Remove every interface and table of the lab, whether or not a record of them is left."""
    with locked(MACHINE_LOCK):
        for interface in lab_interfaces(names):
            run(["ip", "link", "delete", interface], check=False)
        for family, table in (("ip", names.nat_table), ("bridge", names.cut_table)):
            run(["nft", "delete", "table", family, table], check=False)
        # Another bridge, of a lab or not, may rely on them by now.
        if not list(Path("/sys/class/net").glob("*/bridge")):
            kernel.restore_settings()


def lab_interfaces(names: Names) -> list[str]:
    links = [path.name for path in Path("/sys/class/net").iterdir()]
    return [link for link in links if link == names.bridge or link.startswith(names.interface_prefix)]


def lab_tables(names: Names) -> list[str]:
    return [table for table in (names.nat_table, names.cut_table) if table in run(["nft", "list", "tables"])]
