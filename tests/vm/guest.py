"""The first process of the guest: writes promises and rule rows with the agent's own code until the machine is killed.

    guest.py write|read

`write` tells of each write once the agent's code said that it is durable; `read` tells what is there after a boot. Each
subject has a disk of its own, or the fsync of one would save another. Messages are lines of JSON on the second serial
port.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import random
import stat
import subprocess
import sys
import termios
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg

from devmentor.pgagent.leading import NOBODY_NEED, Leading
from devmentor.pgagent.postgres import LocalPostgres
from devmentor.pgagent.sql import Silent
from devmentor.pgagent.state import State
from devmentor_ha.rules import Rule, changed_followers, first_rule

DISKS = Path("/run/disk")
PLATFORM_SETTINGS = Path("/run/run.conf")
PORT = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
# Neither the journal's timer nor writing back what is old may save what nobody synced. ext4 also saves the content of a
# file that was put in place by a rename, as a favour to programs without fsync: not here.
OPTIONS = b"commit=3600,noauto_da_alloc"
WRITE_BACK = Path("/proc/sys/vm/dirty_writeback_centisecs")
LEADER, FOLLOWERS = "vm1", (frozenset({"vm2", "vm3"}), frozenset({"vm2", "vm3", "vm4"}))
PAUSE_SECONDS = 0.2
BIN = Path("/usr/lib/postgresql/17/bin")


def tell(**message: Any) -> None:
    """Returns once the emulator has the line."""
    os.write(PORT, json.dumps(message).encode() + b"\n")
    termios.tcdrain(PORT)


def mount_disks() -> set[str]:
    """Every disk but the first under its serial number."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = set()
    for device in sorted(Path("/sys/block").glob("vd*")):
        name = (device / "serial").read_text().strip()
        if name == "root":
            continue
        (DISKS / name).mkdir(parents=True)
        if libc.mount(f"/dev/{device.name}".encode(), str(DISKS / name).encode(), b"ext4", 0, OPTIONS):
            raise OSError(ctypes.get_errno(), f"mounting {name}")
        found.add(name)
    return found


@contextlib.contextmanager
def without_fsync(*kinds: int) -> Iterator[None]:
    """os.fsync does nothing for files of these kinds (stat.S_IFREG, stat.S_IFDIR): the code as it would be without."""
    fsync = os.fsync

    def some(handle: int) -> None:
        if stat.S_IFMT(os.fstat(handle).st_mode) not in kinds:
            fsync(handle)

    os.fsync = some
    try:
        yield
    finally:
        os.fsync = fsync


class Promise:
    """The agent's promise, number n for epoch n. `unsynced`: kinds of files whose fsync is left out."""

    def __init__(self, name: str, *unsynced: int) -> None:
        self.name = name
        self._unsynced = unsynced

    async def open(self) -> None:
        self._state = State(DISKS / self.name)

    async def write(self) -> int:
        epoch = self._state.promise.epoch + 1
        with without_fsync(*self._unsynced):
            self._state.set_promise(epoch, f"controller of {epoch}")
        return epoch

    async def read(self) -> tuple[int, bool]:
        await self.open()
        promise = self._state.promise
        return promise.epoch, promise.controller == (f"controller of {promise.epoch}" if promise.epoch else "")


class RuleRow:
    """Rule rows in a PostgreSQL of their own, as a leader writes them: number n is rule 1.(n - 1)."""

    def __init__(self, name: str, *settings: str) -> None:
        self.name = name
        self._settings = settings
        self._rule: Rule | None = None

    async def open(self) -> None:
        """Start the server, recovery included."""
        self._start()
        rules = await self._answered(self._postgres.rules)
        self._rule = rules[-1] if rules else None

    def _start(self) -> None:
        data, run = DISKS / self.name / "data", Path(f"/run/{self.name}")
        run.mkdir(mode=0o755)
        config = run / "postgresql.conf"
        own = (
            "listen_addresses = ''",
            f"unix_socket_directories = '{run}'",
            "shared_buffers = '16MB'",
            # The commit itself must flush: the writer of what others leave behind comes too late to help.
            "wal_writer_delay = '10s'",
            # As while a leader's row waits for its quorum: nothing but `local` gets through.
            f"synchronous_standby_names = '{NOBODY_NEED.setting}'",
            *self._settings,
        )
        config.write_text(PLATFORM_SETTINGS.read_text() + "\n".join(own) + "\n")
        os.chown(run, data.stat().st_uid, -1)
        self._log = run / "log"
        self._server = subprocess.Popen(
            [BIN / "postgres", "-D", data, "-c", f"config_file={config}"],
            stdin=subprocess.DEVNULL, stdout=self._log.open("w"), stderr=subprocess.STDOUT,
            user="postgres", group="postgres", extra_groups=[],
        )  # fmt: skip
        self._postgres = LocalPostgres(
            SimpleNamespace(pg_data_dir=data, pg_socket_dir=str(run), pg_port=5432)  # type: ignore[arg-type]
        )
        self._leading = Leading(SimpleNamespace(postgres=self._postgres))  # type: ignore[arg-type]

    async def _answered(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """As a leader does, again where there was no answer in time. Raises OSError where the server has ended."""
        while True:
            try:
                return await ask()
            except (Silent, psycopg.OperationalError, TimeoutError):
                if self._server.poll() is not None:
                    raise OSError(f"PostgreSQL of {self.name} ended: {self._log.read_text()[-500:]}") from None
                await asyncio.sleep(0.2)

    async def write(self) -> int:
        old = self._rule
        rule = changed_followers(old, FOLLOWERS[old.sub % 2]) if old else first_rule(LEADER, FOLLOWERS[1])
        await self._answered(lambda: self._leading._write(rule))
        self._rule = rule
        return rule.sub + 1

    async def read(self) -> tuple[int, bool]:
        await self.open()
        if (rule := self._rule) is None:
            return 0, True
        rows = await self._answered(lambda: self._postgres.value("SELECT count(*) FROM ha.rule"))
        return rule.sub + 1, rows == rule.sub + 1 and rule.followers == FOLLOWERS[(rule.sub + 1) % 2]


SUBJECTS: tuple[Promise | RuleRow, ...] = (
    Promise("promise"),
    RuleRow("rule"),
    Promise("no-fsync", stat.S_IFREG, stat.S_IFDIR),
    Promise("no-file-fsync", stat.S_IFREG),
    Promise("no-folder-fsync", stat.S_IFDIR),
    RuleRow("rule-no-fsync", "fsync = off"),
)


async def write() -> None:
    for subject in SUBJECTS:
        await subject.open()
    while True:
        for subject in SUBJECTS:
            tell(subject=subject.name, acknowledged=await subject.write())
        await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))


async def read() -> None:
    for subject in SUBJECTS:
        try:
            found, whole = await subject.read()
            tell(subject=subject.name, found=found, whole=whole)
        except (ValueError, OSError, psycopg.Error) as error:
            tell(subject=subject.name, found=0, whole=False, error=f"{type(error).__name__}: {error}"[:500])
    tell(end=True)
    await asyncio.Event().wait()


def main() -> None:
    termios.tcsetattr(PORT, termios.TCSANOW, [0, 0, termios.CS8 | termios.CREAD | termios.CLOCAL, 0,
                                             termios.B115200, termios.B115200, [b"\0"] * 32])  # fmt: skip
    try:
        WRITE_BACK.write_text("0")
        if mount_disks() != {subject.name for subject in SUBJECTS}:
            raise OSError("a disk is missing")
        tell(booted=float(Path("/proc/uptime").read_text().split()[0]))
        asyncio.run(write() if sys.argv[1] == "write" else read())
    except BaseException:
        tell(failed=traceback.format_exc()[-1500:])
        raise


main()
