"""Whether a machine can carry its groups: readers of /proc and pure comparisons. Runs on the host, changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import ipaddress
import os
import pathlib
import re
from typing import Any

from .rollout import Lock, RolloutError

GIB = 1024**3
MIN_PYTHON = (3, 11)
MIN_FREE_INODES = 20_000
# The kernel and the firmware keep a little of what is sold as 16 GiB.
MEMORY_TOLERANCE = 0.94


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing on this host that stands in the way."""

    what: str
    problem: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Disk:
    """A path and the file system that holds it (or its nearest existing parent). Sizes in bytes."""

    path: str
    device: int
    free: int
    capacity: int
    free_inodes: int | None


@dataclasses.dataclass(frozen=True)
class Listener:
    """A socket that takes connections or datagrams: its port ("443/tcp"), where known the process and its cgroup."""

    port: str
    process: str
    pid: int | None
    cgroup: str


def check_os(os_release: str, versions: list[str]) -> list[Finding]:
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    name, version = fields.get("ID", "unknown"), fields.get("VERSION_ID", "unknown")
    if name == "debian" and version in versions:
        return []
    wanted = " or ".join(f"Debian {v}" for v in versions)
    return [Finding("operating system", f"is {name} {version}, its groups need {wanted}",
                    f"reinstall the host with {wanted}")]


def check_machine(architecture: str, init: str, uid: int, python: tuple[int, int]) -> list[Finding]:
    """What Ansible and the roles take for granted."""
    findings = []
    if architecture != "x86_64":
        findings.append(Finding("architecture", f"is {architecture}, the artefacts are built for x86_64",
                                "use an x86_64 host"))
    if init != "systemd":
        findings.append(Finding("init", f"process 1 is {init}, the services need systemd",
                                "boot the host with systemd as process 1"))
    if uid != 0:
        findings.append(Finding("ansible_become", "the tasks do not run as root",
                                "set ansible_user: root, or ansible_become: true with a user that may sudo"))
    if python < MIN_PYTHON:
        findings.append(Finding("python3", f"is {python[0]}.{python[1]}, {MIN_PYTHON[0]}.{MIN_PYTHON[1]} is needed",
                                "install Debian's python3 and point ansible_python_interpreter at it"))
    return findings


def check_capacity(cores: int, memory: int, needs: list[dict[str, Any]]) -> list[Finding]:
    """The minima of all groups of this host fit into the machine. Memory in bytes."""
    findings = []
    groups = " + ".join(need["group"] for need in needs)
    want_cores = sum(need["cores"] for need in needs)
    want_memory = sum(need["memory_gib"] for need in needs)
    remedy = "move a group to another host, take a larger machine, or lower devmentor_resource_scale"
    if want_cores > cores + 1e-9:
        findings.append(Finding("devmentor_resources", f"the minima of {groups} are {want_cores:g} cores, the host "
                                f"has {cores}", remedy))
    if want_memory * GIB * MEMORY_TOLERANCE > memory:
        findings.append(Finding("devmentor_resources", f"the minima of {groups} are {want_memory:g} GiB of memory, "
                                f"the host has {memory / GIB:.1f}", remedy))
    return findings


def check_disks(wanted: list[dict[str, Any]], disks: dict[str, Disk]) -> list[Finding]:
    """Free space and size, once per file system: the path that lacks most speaks for it, a full disk for the rest."""
    worst: dict[tuple[int, str], tuple[float, Finding]] = {}

    def note(device: int, kind: str, lack: float, finding: Finding) -> None:
        if lack > worst.get((device, kind), (0.0, finding))[0]:
            worst[(device, kind)] = (lack, finding)

    for want in wanted:
        disk = disks[want["path"]]
        lack = want["free_gib"] * GIB - disk.free
        if lack > 0:
            note(disk.device, "free", lack, Finding(
                f"disk {disk.path}", f"{disk.free / GIB:.2f} GiB are free, {want['free_gib']:g} are needed",
                "free space there (journalctl --vacuum-size, apt-get clean), or grow the file system"))
        lack = want["capacity_gib"] * GIB * MEMORY_TOLERANCE - disk.capacity
        if lack > 0:
            note(disk.device, "capacity", lack, Finding(
                f"disk {disk.path}", f"the file system has {disk.capacity / GIB:.1f} GiB, "
                f"{want['capacity_gib']:g} are needed", "mount a larger file system there"))
        if disk.free_inodes is not None and disk.free_inodes < MIN_FREE_INODES:
            note(disk.device, "inodes", MIN_FREE_INODES - disk.free_inodes, Finding(
                f"disk {disk.path}", f"{disk.free_inodes} inodes are free, {MIN_FREE_INODES} are needed",
                "remove what holds many small files"))
    full = {device for device, kind in worst if kind == "free"}
    return [finding for (device, kind), (_, finding) in worst.items() if kind == "free" or device not in full]


def check_ports(listeners: list[Listener], ports: dict[str, str], units: list[str]) -> list[Finding]:
    """A port of the platform that something else already holds.

    Ours is what runs in a slice of the platform, or in a unit that a role manages (a distribution's unit sits in
    system.slice until `base` has written the slices).
    """
    findings = {}
    for listener in listeners:
        if listener.port not in ports or _is_ours(listener.cgroup, units):
            continue
        who = f"{listener.process} (pid {listener.pid})" if listener.pid else "a process that cannot be named"
        findings[listener.port] = Finding(
            f"port {listener.port} ({ports[listener.port]})", f"is held by {who}",
            f"stop it, or give {ports[listener.port]} another port in devmentor_ports")
    return [findings[port] for port in sorted(findings, key=lambda port: int(port.partition("/")[0]))]


def _is_ours(cgroup: str, units: list[str]) -> bool:
    parts = re.split(r"[/\n]", cgroup)
    return any(part.startswith("devmentor-") for part in parts) or any(
        fnmatch.fnmatch(part, unit) for part in parts for unit in units
    )


def check_vip(vip: str, networks: list[str]) -> list[Finding]:
    """The virtual address belongs to a network that this gateway is connected to."""
    if not vip:
        return []
    address = ipaddress.ip_address(vip)
    if any(address in ipaddress.ip_interface(network).network for network in networks):
        return []
    return [Finding("devmentor_vip", f"{vip} is in none of the host's networks ({', '.join(networks) or 'none'})",
                    "choose an address of the gateways' network")]


def check_clock(host: float, before: float, after: float, tolerance: float = 5.0) -> list[Finding]:
    """The host read its clock between two readings on the control node; all in seconds since the epoch."""
    skew = host - after if host > after else host - before if host < before else 0.0
    if abs(skew) <= tolerance:
        return []
    return [Finding("clock", f"is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the control node",
                    "set the time (chronyc makestep), then run again: certificates and replication need it")]


def check_rollout_lock(directory: pathlib.Path) -> list[Finding]:
    """No rolling update has its lock on this host; `directory` is the one of lock and journal."""
    regardless = "-e rollout_ignore_lock=true goes on regardless"
    try:
        lock = Lock(directory).show()
    except RolloutError as error:
        return [Finding("rolling update", f"its lock cannot be read: {error}", f"do that, or {regardless}")]
    if not lock["held"]:
        return []
    return [Finding("rolling update",
                    f"{lock['run']} of {lock['owner'] or 'unknown'} has held its lock for {lock['age_s'] // 60} min",
                    f"wait until it has ended; where its control node is gone, run its playbook again with "
                    f"-e rollout_take_over={lock['run']}; {regardless}")]


# --- readers ---


def read_disk(path: str) -> Disk:
    existing = pathlib.Path(path)
    while not existing.exists():
        existing = existing.parent
    stat = os.statvfs(existing)
    return Disk(path, existing.stat().st_dev, stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize,
                stat.f_favail if stat.f_files else None)


def read_memory() -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    if not found:
        raise ValueError("/proc/meminfo names no MemTotal")
    return int(found.group(1)) * 1024


# The state of a socket that listens (TCP) or is bound and has no peer (UDP), in /proc/net.
_LISTENING = {"tcp": "0A", "udp": "07"}


def parse_sockets(text: str, protocol: str) -> dict[int, str]:
    """/proc/net/tcp, tcp6, udp or udp6 -> {socket inode: port} of those that are reached from outside or inside."""
    sockets = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTENING[protocol]:
            sockets[int(fields[9])] = f"{int(fields[1].rsplit(':', 1)[1], 16)}/{protocol}"
    return sockets


def read_listeners(ports: set[str]) -> list[Listener]:
    """Who listens on these ports ("443/tcp"), by way of /proc: nothing needs to be installed for that."""
    sockets: dict[int, str] = {}
    for protocol in _LISTENING:
        for table in (f"/proc/net/{protocol}", f"/proc/net/{protocol}6"):
            if os.path.exists(table):
                sockets.update(parse_sockets(pathlib.Path(table).read_text(), protocol))
    sockets = {inode: port for inode, port in sockets.items() if port in ports}
    if not sockets:
        return []
    listeners = []
    for process in pathlib.Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        held = _sockets_of(process) & set(sockets)
        try:
            command = (process / "comm").read_text().strip() if held else ""
            cgroup = (process / "cgroup").read_text() if held else ""
        except OSError:
            continue  # the process ended meanwhile
        listeners += [Listener(sockets.pop(inode), command, int(process.name), cgroup) for inode in held]
    return listeners + [Listener(port, "", None, "") for port in sockets.values()]


def _sockets_of(process: pathlib.Path) -> set[int]:
    """Inodes of the sockets that a process (/proc/PID) has open; descriptors come and go while one looks."""
    inodes = set()
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                link = os.readlink(descriptor)
                if link.startswith("socket:["):
                    inodes.add(int(link[8:-1]))
    return inodes
