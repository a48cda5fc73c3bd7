"""Remove a lab from the machine, also one whose `up` was killed half-way: every name is derived, none is looked up."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import mounts, network
from lab.cgroups import Hierarchies, HostGroup
from lab.errors import TimeoutExpired
from lab.host import remove_propagation
from lab.state import Layout, locked

SETTLE = 30.0


@dataclass(frozen=True)
class Removal:
    """What one lab has on the machine. `generated` are the files it wrote beside its inventory."""

    layout: Layout
    hierarchies: Hierarchies
    generated: tuple[Path, ...]

    @property
    def _group(self) -> HostGroup:
        return HostGroup(self.hierarchies, self.layout.names.cgroup)

    def remove(self) -> None:
        with locked(self.layout.lock):
            deadline = time.monotonic() + SETTLE
            while True:
                self._sweep()
                # A command that a killed `up` had just started may finish after the sweep, so look again.
                time.sleep(0.1)
                if not (leftovers := self.leftovers()):
                    break
                if time.monotonic() > deadline:
                    raise TimeoutExpired(f"left on the machine: {'; '.join(leftovers)}", "run down again")
            self.layout.lock.unlink(missing_ok=True)
        with suppress(OSError):
            self.layout.root.parent.rmdir()  # the last lab takes the folder along

    def leftovers(self) -> list[str]:
        """Everything of this lab that is on the machine, in words; nothing after `remove`."""
        names = self.layout.names
        found = [f"process {pid}" for pid in sorted(self._group.processes() | self._strays())]
        found += [f"mount {point}" for point in mounts.mounted_below(self.layout.root)]
        found += [f"interface {name}" for name in network.lab_interfaces(names)]
        found += [f"nft table {table}" for table in network.lab_tables(names)]
        found += [f"control group {names.cgroup}"] if self._group.exists() else []
        found += [f"directory {self.layout.root}"] if self.layout.root.exists() else []
        return found

    def _sweep(self) -> None:
        for pid in self._strays():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._group.kill()
        network.take_down(self.layout.names)
        mounts.unmount_below(self.layout.root)
        self._group.remove()
        remove_propagation(f"{self.layout.names.machine_prefix}*")
        shutil.rmtree(self.layout.root, ignore_errors=True)
        for file in self.generated:
            file.unlink(missing_ok=True)

    def _strays(self) -> set[int]:
        """Supervisors that had not joined their control group yet when `up` was killed."""
        mark = f"{self.layout.root}/".encode()
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"lab.supervisor" in words and any(word.startswith(mark) for word in words):
                        found.add(int(entry.name))
        return found
