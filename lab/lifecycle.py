"""A whole lab: the hosts of one inventory of one checkout, brought up and taken down together."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import yaml

from lab import faults, machine, network
from lab.bake import ensure_layer
from lab.cache import cache_in_use
from lab.cgroups import find_hierarchies
from lab.errors import HostStateError, LabError
from lab.host import CHECKOUT, Host, new_key
from lab.inventory import HostSpec, Inventory, inventory_hosts, inventory_variables
from lab.names import Names, lab_identity
from lab.progress import Progress
from lab.removal import Removal
from lab.rootfs import ensure_rootfs
from lab.state import HostRecord, LabRecord, Layout, load_record, locked, save_record, state_root, write_atomically

PARALLEL = 8
T = TypeVar("T")


@dataclass(frozen=True)
class HostStatus:
    name: str
    address: str
    state: str  # running, frozen, off, absent (no disk yet)
    suite: str
    layer: str
    memory_mib: int | None  # in use, None where it is not accounted


class Lab:
    """The lab of an inventory. Methods raise LabError with a remedy."""

    def __init__(self, inventory: Inventory, progress: Progress, checkout: Path = CHECKOUT) -> None:
        self.inventory = inventory
        self.progress = progress
        self.names = Names(lab_identity(checkout, inventory.file))
        self.layout = Layout(self.names)
        self.hierarchies = find_hierarchies()

    # --- up --------------------------------------------------------------------------------------------------

    def up(self, limit: str | None = None, layer: str | None = None) -> dict[str, float]:
        """Start the hosts that are not on yet; returns the seconds each took until it answered on SSH.

        Without a limit these are the hosts with `lab_autostart`; a limit starts exactly what it names. `layer`
        overrides `lab_layer` for hosts that have no disk yet.
        """
        machine.require_machine()
        with locked(self.layout.lock):
            record = self._place_hosts()
            number = network.bring_up(self.layout, record)
            self._write_keys(record)
            self._write_variables(record, number)
            wanted = [h for h in self.inventory.select(limit) if limit is not None or h.autostart]
            hosts = [self._host(replace(h, layer=layer or h.layer), record) for h in wanted]
            stopped = [host for host in hosts if not host.powered]
            self.progress.say(f"lab {self.names.identity} on {network.network_of(number)}, bridge {self.names.bridge}")
            self._prepare(stopped, record, layer)
            if not stopped:
                self.progress.say(f"all running: {', '.join(host.name for host in hosts)}")
                return {}
            with self.progress.step(f"starting {', '.join(host.name for host in stopped)}"):
                began = time.monotonic()
                for host in stopped:
                    host.launch([Path(layer) for layer in record.hosts[host.name].lower])
                return each(stopped, lambda host: host.wait_ready(since=began))

    def _place_hosts(self) -> LabRecord:
        record = load_record(self.layout) or LabRecord(str(self.inventory.file))
        for name in [name for name in record.hosts if name not in self.inventory.hosts]:
            # A host that left the inventory is destroyed, as one whose machine was given back.
            self.progress.say(f"{name} is no longer in the inventory: removing it")
            # Without a network's number `up` ended before any host was started or had a disk.
            if record.network is not None:
                self._host(HostSpec(name), record).destroy()
            del record.hosts[name]
        for name in self.inventory.hosts:
            if name not in record.hosts:
                taken = {host.index for host in record.hosts.values()}
                record.hosts[name] = HostRecord(next(i for i in range(len(taken) + 1) if i not in taken))
        save_record(self.layout, record)
        return record

    def _write_keys(self, record: LabRecord) -> None:
        new_key(self.layout.client_key, f"devmentor-lab-{self.names.identity}")
        number = _number(record)
        lines = []
        for name, host in record.hosts.items():
            _private, public = new_key(self.layout.host_key(name), f"root@{name}")
            lines.append(f"{network.address(number, host.index)},{name} {' '.join(public.split()[:2])}\n")
        write_atomically(self.layout.known_hosts, "".join(lines))

    def _write_variables(self, record: LabRecord, number: int) -> None:
        """What Ansible needs to know of the lab, beside the inventory."""
        variables = {
            "lab_addresses": {name: network.address(number, host.index) for name, host in record.hosts.items()},
            "lab_network": str(network.network_of(number)),
            "lab_gateway": network.gateway(number),
            "lab_vip": network.vip(number),
            "lab_ssh_key": str(self.layout.client_key),
            "lab_known_hosts": str(self.layout.known_hosts),
        }
        common = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.layout.client_key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.layout.known_hosts}",
        }
        hosts = {
            name: {"ansible_host": network.address(number, host.index), **common} for name, host in record.hosts.items()
        }
        for file, content in (
            (self.inventory.generated, variables),
            (self.inventory.generated_hosts, {"all": {"hosts": hosts}}),
        ):
            text = f"---\n# Written by `lab up`, removed by `down`.\n{yaml.safe_dump(content, sort_keys=False)}"
            if not file.exists() or file.read_text() != text:
                write_atomically(file, text)

    def _prepare(self, hosts: list[Host], record: LabRecord, layer: str | None) -> None:
        """Give every host a disk; one that has a disk keeps it, with the layer that it was made with."""
        for host in hosts:
            have = record.hosts[host.name]
            if not (have.lower and host.has_disk):
                continue
            for what, is_now, asked in (("suite", have.suite, host.spec.suite), ("layer", have.layer, layer)):
                if asked not in (None, is_now):
                    raise HostStateError(
                        f"{host.name} has a disk of {what} {is_now}, {asked} is asked for",
                        f"give the disk up first: lab down --limit {host.name}",
                    )
        fresh = [host for host in hosts if not (host.has_disk and record.hosts[host.name].lower)]
        with cache_in_use():
            made_of = {key: self.layers(*key) for key in {(host.spec.suite, host.spec.layer) for host in fresh}}
            for host in fresh:
                suite, kind = host.spec.suite, host.spec.layer
                record.hosts[host.name] = HostRecord(host.index, suite, kind, [str(p) for p in made_of[suite, kind]])
                host.make_disk(self._identity(host, record))
            save_record(self.layout, record)

    def layers(self, suite: str, layer: str) -> list[Path]:
        """Read-only layers of a host's disk, the topmost first; made when this machine lacks them."""
        rootfs = ensure_rootfs(suite, self.progress)
        return [*ensure_layer(suite, rootfs, self.progress), rootfs] if layer == "baked" else [rootfs]

    def _identity(self, host: Host, record: LabRecord) -> dict[str, tuple[str, int]]:
        """The files that make a disk this host's and no other's."""
        number = host.number
        private, public = new_key(self.layout.host_key(host.name), f"root@{host.name}")
        _, client = new_key(self.layout.client_key, "")
        hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
        hosts += "".join(f"{network.address(number, h.index)} {name}\n" for name, h in record.hosts.items())
        wire = f"[Match]\nName=host0\n\n[Network]\nAddress={host.address}/24\nGateway={network.gateway(number)}\n"
        return {
            "etc/hostname": (f"{host.name}\n", 0o644),
            "etc/hosts": (hosts, 0o644),
            "etc/machine-id": (f"{os.urandom(16).hex()}\n", 0o444),
            "etc/resolv.conf": ("".join(f"nameserver {server}\n" for server in machine.name_servers()), 0o644),
            # Must sort before systemd's own 80-container-host0.network, or DHCP is tried instead.
            "etc/systemd/network/10-host0.network": (f"{wire}LinkLocalAddressing=no\n", 0o644),
            "etc/ssh/ssh_host_ed25519_key": (private, 0o600),
            "etc/ssh/ssh_host_ed25519_key.pub": (public, 0o644),
            "root/.ssh/authorized_keys": (client, 0o600),
        }

    # --- down ------------------------------------------------------------------------------------------------

    def down(self, limit: str | None = None) -> None:
        """Remove the lab, or the named hosts with their disks. Needs no record: names are derived."""
        machine.require_root()
        if limit is not None:
            self._remove_hosts(self.inventory.select(limit))
            return
        with self.progress.step("removing the lab"):
            self.removal.remove()

    @property
    def removal(self) -> Removal:
        generated = (self.inventory.generated, self.inventory.generated_hosts)
        return Removal(self.layout, self.hierarchies, generated)

    def _remove_hosts(self, specs: Iterable[HostSpec]) -> None:
        with locked(self.layout.lock):
            record = self.record()
            for spec in specs:
                with self.progress.step(f"removing {spec.name}"):
                    self._host(spec, record).destroy()
                self.layout.host_key(spec.name).unlink(missing_ok=True)
                self.layout.host_key(spec.name).with_suffix(".pub").unlink(missing_ok=True)
                record.hosts[spec.name] = HostRecord(record.hosts[spec.name].index)
            save_record(self.layout, record)
            self._write_keys(record)

    # --- one host --------------------------------------------------------------------------------------------

    def record(self) -> LabRecord:
        record = load_record(self.layout)
        if record is None or record.network is None:
            raise HostStateError(f"the lab of {self.inventory.file} is not up", "python -m lab up")
        return record

    def host(self, name: str) -> Host:
        return self._host(self.inventory.host(name), self.record())

    def hosts(self, limit: str | None = None) -> list[Host]:
        record = self.record()
        return [self._host(spec, record) for spec in self.inventory.select(limit) if spec.name in record.hosts]

    def _host(self, spec: HostSpec, record: LabRecord) -> Host:
        if spec.name not in record.hosts:
            raise HostStateError(f"{spec.name} joined the inventory after the lab came up", "python -m lab up")
        index = record.hosts[spec.name].index
        return Host(spec, index, _number(record), self.names, self.layout.host(spec.name), self.hierarchies)

    def cuts(self) -> list[str]:
        """The network faults in force, in words."""
        record = load_record(self.layout)
        if record is None or not network.exists(self.names.bridge):
            return []
        names = {self.names.interface(host.index): name for name, host in record.hosts.items()}
        found = faults.cuts(self.names)
        return [
            *(f"{names[each]} from everything" for each in found.alone),
            *(f"{names[each]} from its peers" for each in found.peerless),
            *(f"{names[source]} -x-> {names[target]}" for source, target in found.pairs),
        ]

    def status(self) -> list[HostStatus]:
        record = load_record(self.layout)
        found = []
        for spec in self.inventory.hosts.values():
            if record is None or record.network is None or spec.name not in record.hosts:
                found.append(HostStatus(spec.name, "", "absent", spec.suite, spec.layer, None))
                continue
            host, entry = self._host(spec, record), record.hosts[spec.name]
            on = host.powered
            state = "frozen" if on and host.group.frozen else "running" if on else "off" if host.has_disk else "absent"
            memory = host.group.memory_mib() if on else None
            suite, layer = entry.suite or spec.suite, entry.layer or spec.layer
            found.append(HostStatus(spec.name, host.address, state, suite, layer, memory))
        return found


def known_labs() -> dict[str, str]:
    """Every lab of this machine: identity -> inventory file."""
    found = {}
    for path in sorted(state_root().glob("*/lab.json")):
        record = load_record(Layout(Names(path.parent.name)))
        found[path.parent.name] = record.inventory if record else ""
    return found


def remove_lab(identity: str) -> None:
    """Remove a lab by its identity, for when its checkout or inventory is no more."""
    if not re.fullmatch(r"[0-9a-f]{8}", identity):
        raise HostStateError(f"`{identity}` is not a lab's identity", "python -m lab list")
    layout = Layout(Names(identity))
    record = load_record(layout)
    file = Path(record.inventory) if record else None
    generated = (inventory_variables(file), inventory_hosts(file)) if file else ()
    Removal(layout, find_hierarchies(), generated).remove()


def _number(record: LabRecord) -> int:
    if record.network is None:
        raise HostStateError("the lab has no network yet", "python -m lab up")
    return record.network


def each(hosts: list[Host], action: Callable[[Host], T]) -> dict[str, T]:
    """Do something on all hosts at once; one error names every host that failed."""
    with ThreadPoolExecutor(max_workers=max(PARALLEL, len(hosts))) as pool:
        futures = {host.name: pool.submit(action, host) for host in hosts}
    errors = [error for future in futures.values() if isinstance(error := future.exception(), LabError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise type(errors[0])("\n".join(str(error) for error in errors))
    return {name: future.result() for name, future in futures.items()}
