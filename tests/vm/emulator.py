"""One emulated machine: started, listened to, killed. Its memory is gone with the process, its disks are files."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.errors import CommandError, TimeoutExpired
from lab.proc import tail
from tests.vm.image import Image

MEMORY_MIB = 768
# `unsafe`: a flush of the guest is not passed on to this machine's disk. What the guest wrote to its disk is in this
# machine's page cache either way and outlives the emulator; only what the guest never wrote is lost.
CACHE = "unsafe"
# Without ACPI, whose tables time out where the emulator gets little processor time, and no disk is found then.
BOOT = "console=ttyS0 quiet panic=-1 acpi=off nowatchdog mitigations=off"


class Emulator:
    """A context manager: whatever happens inside, the process is gone afterwards."""

    def __init__(self, image: Image, initramfs: Path, disks: Mapping[str, Path], words: str, console: Path) -> None:
        """`disks`: serial -> file, at most 20 letters; `words`: what the guest's program is told."""
        self.console = console
        drives: list[str] = []
        for serial, path, rest in [("root", image.root, ",readonly=on"), *((s, p, "") for s, p in disks.items())]:
            drives += ["-drive", f"if=none,id={serial},format=raw,cache={CACHE},file={path}{rest}"]
            drives += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
        self._command = [
            # However this process ends, the emulator ends with it.
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
            # Never KVM: a nested one is there and fails in many ways, and then the same run differs between machines.
            "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB),
            "-kernel", str(image.kernel), "-initrd", str(initramfs), "-append", f"{BOOT} -- {words}",
            "-chardev", f"file,id=console,path={console}", "-serial", "chardev:console",
            "-chardev", "stdio,id=told,signal=off", "-serial", "chardev:told",
            *drives,
        ]  # fmt: skip
        self._unread = b""

    def __enter__(self) -> Emulator:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                         stderr=self.console.with_suffix(".err").open("w"))  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> list[dict[str, Any]]:
        """SIGKILL, and what the guest had told until then and nobody has read."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        whole, _, _ = (self._unread + (self._process.stdout.read() or b"")).rpartition(b"\n")
        self._unread = b""
        return [message for line in whole.splitlines() if (message := self._message(line))]

    def told(self, limit_s: float) -> dict[str, Any] | None:
        """The guest's next message, None where none came in time. Raises CommandError where the machine has ended."""
        end = time.monotonic() + limit_s
        assert self._process.stdout is not None
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                if message := self._message(line):
                    return message
                continue
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            read = self._process.stdout.read1(65536)
            if not read:
                raise CommandError(f"the guest ended by itself: {self._last_words()}", f"read {self.console}")
            self._unread += read

    def next(self, limit_s: float, what: str) -> dict[str, Any]:
        """As `told`. Raises TimeoutExpired, with what was waited for, where none came in time."""
        message = self.told(limit_s)
        if message is None:
            raise TimeoutExpired(
                f"the guest did not say {what} within {limit_s:.0f} s: {self._last_words() or 'its console is empty'}",
                f"read {self.console}; on a busy machine give it more time (--limit)",
            )
        return message

    def _message(self, line: bytes) -> dict[str, Any] | None:
        line = line.strip()
        if not line:
            return None
        message: dict[str, Any] = json.loads(line)
        if failure := message.get("failed"):
            raise CommandError(f"the guest's program failed: {failure}", f"read {self.console}")
        return message

    def _last_words(self) -> str:
        files = (self.console.with_suffix(".err"), self.console)
        return tail("\n".join(path.read_text(errors="replace") for path in files if path.exists()))
