"""One control group per lab host, in every hierarchy that the machine has.

Without a group of its own a host shares one with its neighbours, and `systemctl kill` on one host then kills the same
unit on the others. Layout below the unified hierarchy, and the same in systemd's own where that is separate::

    dmlab-<id>/<host>/launcher      the supervisor
    dmlab-<id>/<host>/machine       nspawn, which makes `supervisor` and `payload` below it

Limits for the whole host act on `dmlab-<id>/<host>`, in the unified hierarchy when the machine has no other, or else
in the version 1 hierarchies of memory, cpu and pids.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.errors import HostStateError, PrerequisiteError, TimeoutExpired

LIMITED = ("memory", "cpu", "pids")
PIDS_MAX = 8192
PERIOD_US = 100_000


@dataclass(frozen=True)
class Hierarchies:
    unified: Path
    named_systemd: Path | None
    controllers: dict[str, Path]  # version 1 mounts; empty on a machine with the unified hierarchy alone

    @property
    def tracking(self) -> list[Path]:
        """Hierarchies in which systemd tracks processes."""
        return [self.unified, *([self.named_systemd] if self.named_systemd else [])]

    @property
    def roots(self) -> list[Path]:
        return [*self.tracking, *self.controllers.values()]


def find_hierarchies(mountinfo: str | None = None) -> Hierarchies:
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    unified: Path | None = None
    named: Path | None = None
    controllers: dict[str, Path] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mountpoint = Path(left.split()[4])
        kind, _source, options = right.split(maxsplit=2)
        if kind == "cgroup2":
            unified = unified or mountpoint
        elif kind == "cgroup":
            words = options.split(",")
            if "name=systemd" in words:
                named = mountpoint
            controllers.update({name: mountpoint for name in LIMITED if name in words})
    if unified is None:
        raise PrerequisiteError(
            "this machine has no unified control group hierarchy",
            "mount one: mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
        )
    return Hierarchies(unified, named, controllers)


def _write(path: Path, value: object) -> None:
    path.write_text(f"{value}\n")


def _join(group: Path, pid: int) -> None:
    _write(group / "cgroup.procs", pid)


def _processes(group: Path) -> Iterator[int]:
    if group.is_dir():
        for folder, _folders, _files in os.walk(group):
            with suppress(OSError):
                yield from (int(word) for word in (Path(folder) / "cgroup.procs").read_text().split())


@dataclass(frozen=True)
class HostGroup:
    """The control groups of one host (or, with `name` alone, of the whole lab)."""

    hierarchies: Hierarchies
    name: str

    def _unified(self, *parts: str) -> Path:
        return self.hierarchies.unified.joinpath(self.name, *parts)

    @property
    def _guest(self) -> Path:
        """The guest's own processes. Not nspawn: it must see the guest's end, also while the guest is frozen."""
        return self._unified("machine", "payload")

    def create(self, memory_mib: int | None, cpus: float | None) -> None:
        """Make the groups and set the limits of the whole host."""
        for root in self.hierarchies.tracking:
            for leaf in ("launcher", "machine"):
                (root / self.name / leaf).mkdir(parents=True, exist_ok=True)
        if not self.hierarchies.controllers:
            self._limit_unified(memory_mib, cpus)
            return
        groups = {name: root / self.name for name, root in self.hierarchies.controllers.items()}
        for group in groups.values():
            group.mkdir(parents=True, exist_ok=True)
        if "memory" in groups:
            limit = -1 if memory_mib is None else memory_mib * 1024 * 1024
            _write(groups["memory"] / "memory.limit_in_bytes", limit)
        if "cpu" in groups:
            _write(groups["cpu"] / "cpu.cfs_period_us", PERIOD_US)
            _write(groups["cpu"] / "cpu.cfs_quota_us", -1 if cpus is None else int(cpus * PERIOD_US))
        if "pids" in groups:
            _write(groups["pids"] / "pids.max", PIDS_MAX)

    def _limit_unified(self, memory_mib: int | None, cpus: float | None) -> None:
        for group in (self.hierarchies.unified, self._unified().parent, self._unified()):
            available = (group / "cgroup.controllers").read_text().split()
            for controller in LIMITED:
                if controller in available:
                    _write(group / "cgroup.subtree_control", f"+{controller}")
        limits = {
            "memory.max": "max" if memory_mib is None else memory_mib * 1024 * 1024,
            "cpu.max": f"{'max' if cpus is None else int(cpus * PERIOD_US)} {PERIOD_US}",
            "pids.max": PIDS_MAX,
        }
        for file, value in limits.items():
            if (self._unified() / file).exists():
                _write(self._unified() / file, value)

    def join(self, leaf: str, pid: int) -> None:
        """Put a process into `launcher` or `machine`, and under the host's limits."""
        for root in self.hierarchies.tracking:
            _join(root / self.name / leaf, pid)
        for root in self.hierarchies.controllers.values():
            _join(root / self.name, pid)

    def payload_files(self) -> list[Path]:
        """The files to write a process id to, to make it a process of the running host.

        The group is one of its own because, in the unified hierarchy, processes live in leaves only.
        """
        groups = [root / self.name for root in self.hierarchies.controllers.values()]
        for root in self.hierarchies.tracking:
            payload = root / self.name / "machine" / "payload"
            group = (payload if payload.is_dir() else payload.parent) / "lab.exec"
            group.mkdir(exist_ok=True)
            groups.append(group)
        return [group / "cgroup.procs" for group in groups]

    def processes(self) -> set[int]:
        return {pid for root in self.hierarchies.roots for pid in _processes(root / self.name)}

    def freeze(self, frozen: bool) -> None:
        """Stop, or let run again, every process of the host at once."""
        group = self._guest
        if not group.is_dir():
            raise HostStateError(f"{self.name} has no control group", "start the host first: lab up")
        _write(group / "cgroup.freeze", int(frozen))
        deadline = time.monotonic() + 10
        while f"frozen {int(frozen)}" not in (group / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise TimeoutExpired(f"{group} did not {'freeze' if frozen else 'thaw'} within 10 s")
            time.sleep(0.01)

    @property
    def frozen(self) -> bool:
        events = self._guest / "cgroup.events"
        return events.exists() and "frozen 1" in events.read_text()

    def memory_mib(self) -> int | None:
        """Memory in use by the whole host, page cache included; None where nothing accounts for it."""
        files = [self._unified("memory.current")]
        if "memory" in self.hierarchies.controllers:
            files.append(self.hierarchies.controllers["memory"] / self.name / "memory.usage_in_bytes")
        return next((int(file.read_text()) // 2**20 for file in files if file.exists()), None)

    def kill(self) -> None:
        """SIGKILL everything in the group, again until nothing new appears. The group is of no use after that."""
        deadline = time.monotonic() + 10
        while True:
            if (switch := self._unified("cgroup.kill")).exists():
                with suppress(OSError):
                    _write(switch, 1)
            remaining = self.processes()
            if not remaining:
                return
            for pid in remaining:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            if time.monotonic() > deadline:
                raise TimeoutExpired(f"processes {sorted(remaining)} of {self.name} survive SIGKILL")
            time.sleep(0.02)

    def remove(self) -> None:
        """Remove the groups, deepest first. Every process must be gone."""
        for root in self.hierarchies.roots:
            _remove_tree(root / self.name)

    def exists(self) -> bool:
        return any((root / self.name).is_dir() for root in self.hierarchies.roots)


def _remove_tree(top: Path) -> None:
    deadline = time.monotonic() + 5
    while top.is_dir():
        for folder, _folders, _files in os.walk(top, topdown=False):
            with suppress(FileNotFoundError, OSError):
                Path(folder).rmdir()
        if top.is_dir():
            if time.monotonic() > deadline:
                raise TimeoutExpired(f"control group {top} is still in use")
            time.sleep(0.02)
