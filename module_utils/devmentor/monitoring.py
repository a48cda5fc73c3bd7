"""What Prometheus scrapes and probes, computed from the inventory's groups: pure functions.

Files are Prometheus' file-based service discovery: Prometheus watches them, so a host that joins a group is scraped as
soon as the file is replaced, without a reload.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any


class MonitoringError(Exception):
    """A job table or inventory that cannot be turned into targets; the message says which entry and the remedy."""


@dataclasses.dataclass(frozen=True)
class Host:
    """A host as its peers see it: the address they reach it at and its failure domain."""

    name: str
    address: str
    zone: str


def bracketed(address: str) -> str:
    """The address as it stands before a port: an IPv6 address gets brackets."""
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


def endpoint(address: str, port: int) -> str:
    """`address:port`."""
    return f"{bracketed(address)}:{port}"


def _port(entry: Mapping[str, Any], ports: Mapping[str, int]) -> int:
    name = entry.get("port")
    if name not in ports:
        raise MonitoringError(f"{dict(entry)}: {name!r} is not in devmentor_ports. Add it in roles/platform.")
    return int(ports[str(name)])


def _members(entry: Mapping[str, Any], groups: Mapping[str, list[str]], hosts: Mapping[str, Host]) -> list[Host]:
    if "group" not in entry:
        raise MonitoringError(f"{dict(entry)}: has no group. Name the inventory group whose hosts are to be scraped.")
    # Hosts of `offline` are down on purpose: a target that is never up would hide the one that just went down.
    wanted = [entry["group"]] if isinstance(entry["group"], str) else entry["group"]
    names = {name for group in wanted for name in groups.get(group, [])} - set(groups.get("offline", []))
    return [hosts[name] for name in sorted(names)]


def _labels(entry: Mapping[str, Any], host: Host) -> dict[str, str]:
    return {"component": str(entry["component"]), "host": host.name, "zone": host.zone}


def scrape_targets(
    jobs: Iterable[Mapping[str, Any]],
    groups: Mapping[str, list[str]],
    hosts: Mapping[str, Host],
    ports: Mapping[str, int],
) -> dict[str, list[dict[str, Any]]]:
    """file_sd entries by job name, one per host of the job's group that is not in
    `offline`, sorted by host.

    A job is {name, component, group (one, or a list of them), port (a key of devmentor_ports)}. A job whose group is
    empty gets an empty list, so that its file is rewritten when the last host leaves. Raises MonitoringError for an
    unknown port or no group.
    """
    targets: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        entries = targets.setdefault(str(job["name"]), [])
        port = _port(job, ports)
        for host in _members(job, groups, hosts):
            entries.append({"targets": [endpoint(host.address, port)], "labels": _labels(job, host)})
    return targets


def probe_targets(
    probes: Iterable[Mapping[str, Any]],
    groups: Mapping[str, list[str]],
    hosts: Mapping[str, Host],
    ports: Mapping[str, int],
) -> list[dict[str, Any]]:
    """file_sd entries for the blackbox exporter, the module to probe with in the label `__param_module`.

    A probe is {module, component, group, port} for each host of a group, or {module, component, url} for one address
    that belongs to no host (such as the VIP); a url that is empty is left out.
    """
    entries: list[dict[str, Any]] = []
    for probe in probes:
        module = {"__param_module": str(probe["module"])}
        if "url" in probe:
            if probe["url"]:
                labels = {"component": str(probe["component"]), **module}
                entries.append({"targets": [str(probe["url"])], "labels": labels})
            continue
        port = _port(probe, ports)
        for host in _members(probe, groups, hosts):
            entries.append({"targets": [endpoint(host.address, port)], "labels": {**_labels(probe, host), **module}})
    return entries


def target_files(targets: Mapping[str, list[dict[str, Any]]], directory: str) -> list[dict[str, str]]:
    """`config_files` entries, one JSON file per job, the same text for the same targets."""
    return [
        {"path": f"{directory}/{name}.json", "content": json.dumps(entries, indent=1, sort_keys=True) + "\n"}
        for name, entries in sorted(targets.items())
    ]


def rule_files(paths: list[str], contents: list[str]) -> list[dict[str, str]]:
    """`config_files` entries of rule files, each proved by promtool before any is put in place."""
    return [
        {"path": path, "content": content, "validate": "promtool check rules %s"}
        for path, content in zip(paths, contents, strict=True)
    ]


def exporter_files(exporters: Iterable[Mapping[str, Any]], header: str, dropin: str) -> list[dict[str, str]]:
    """`config_files` entries of each exporter: Debian's /etc/default file and a drop-in for its unit, whose template
    `dropin` names.

    An exporter is {name, args, environment?: [lines]}. systemd splits ARGS at blanks and takes backslashes and quotes
    out of it; MonitoringError for arguments that would not arrive as written.
    """
    files = []
    for exporter in exporters:
        unit = f"prometheus-{exporter['name']}-exporter"
        if any(character in exporter["args"] for character in "\"'\\\n"):
            raise MonitoringError(f"{unit}: a quote, backslash or line break in args. Write [.] for a literal dot.")
        lines = [header, *exporter.get("environment", []), f'ARGS="{exporter["args"].strip()}"']
        files.append({"path": f"/etc/default/{unit}", "content": "".join(f"{line}\n" for line in lines)})
        files.append({"path": f"/etc/systemd/system/{unit}.service.d/devmentor.conf", "template": dropin})
    return files


def exporter_units(
    exporters: Iterable[Mapping[str, Any]], address: str, ca: str, cert: str, key: str
) -> list[dict[str, Any]]:
    """`service_units` entries of each exporter.

    One is restarted when something that it read once has changed, and is up when it answers over mutual TLS.
    """
    units = []
    for exporter in exporters:
        unit = f"prometheus-{exporter['name']}-exporter"
        url = f"https://{endpoint(address, int(exporter['port']))}/"
        units.append(
            {
                "name": f"{unit}.service",
                "enabled": True,
                # The program too: an upgrade under policy-rc.d leaves the old one running.
                "restart_on": [f"/etc/default/{unit}", f"/usr/bin/{unit}", *exporter.get("restart_on", [])],
                "reload_on": list(exporter.get("reload_on", [])),
                "wait_for": {"url": url, "ca": ca, "cert": cert, "key": key},
            }
        )
    return units


def webhook_secret_files(webhooks: Iterable[Mapping[str, Any]], prefix: str) -> list[dict[str, str]]:
    """`config_files` secret entries: each webhook's URL, which may be its only protection, and its token if any.

    Numbered as the webhooks are, from 1.
    """
    return [
        {"path": f"{prefix}{number}.{kind}", "content": f"{webhook[kind]}\n", "group": "prometheus", "mode": "0640"}
        for number, webhook in enumerate(webhooks, start=1)
        for kind in ("url", "token")
        if kind in webhook
    ]


def mesh_arguments(address: str, peers: Iterable[str], port: int, tls_config: str) -> str:
    """Alertmanager's arguments for the mesh with `peers` (addresses); without peers it is not to listen at all."""
    others = [f"--cluster.peer={endpoint(peer, port)}" for peer in peers]
    if not others:
        return "--cluster.listen-address="
    # Its TLS transport listens on and advertises IP addresses only; reached by a name, it has to find its own.
    listen, own = "0.0.0.0", []  # noqa: S104 - the firewall lets only the peers in
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(address)
        own = [f"--cluster.advertise-address={endpoint(str(parsed), port)}"]
        listen = "0.0.0.0" if parsed.version == 4 else "::"  # noqa: S104
    return " ".join(
        [f"--cluster.listen-address={endpoint(listen, port)}", *own, *others, f"--cluster.tls-config={tls_config}"]
    )
