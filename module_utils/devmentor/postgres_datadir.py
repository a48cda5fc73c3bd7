"""A new PostgreSQL data directory: by initdb or as a copy of the primary.

It is made beside its place and renamed into it when it is complete and on disk, so that an interrupted run leaves
nothing that looks like data.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..devmentor_ha.textfiles import PostgresError, conninfo, format_auto_conf, replica_auto_conf
from .postgres_server import SYSTEM_USER, Server

LOCK_TIMEOUT_S = 3600
SLOT_BUSY_TIMEOUT_S = 60


class NewData:
    """Makes a server's data. `params` are those of module postgres_instance; `actions` gets what is done, and why."""

    def __init__(self, server: Server, params: Mapping[str, Any], actions: list[str]) -> None:
        self.server, self.params, self.actions = server, params, actions
        self.staging = f"{server.data}.incoming"
        self.replaced = f"{server.data}.replaced"
        self.backup_log = f"/var/log/postgresql/basebackup-{server.name}.log"

    def create(self, action: str) -> None:
        with self.locked():
            report = self.server.report()  # again, under the lock: another run may have been here
            if report["data"] == "unknown":
                raise PostgresError(report["error"])
            if report["data"] == "present":
                return
            for leftover in (self.staging, self.replaced):
                if os.path.isdir(leftover):
                    self.actions.append(f"removed {leftover}: left by an interrupted run")
                    shutil.rmtree(leftover)
            if action == "initdb":
                self.initdb()
            else:
                self.clone()
            self.swap()

    def initdb(self) -> None:
        self.actions.append(f"initdb {self.server.data}: no host has data")
        self.server.as_user(
            [f"{self.server.bin}/initdb", "--pgdata", self.staging, *self.params["initdb_options"]], check=True
        )
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):  # Debian's are in /etc/postgresql
            os.unlink(os.path.join(self.staging, name))
        self.write("postgresql.auto.conf", format_auto_conf(self.params["seed"]))

    def clone(self) -> None:
        source = self.params["primary_conninfo"]
        self.actions.append(f"pg_basebackup from {source.get('host')}: no data here")
        command = [
            f"{self.server.bin}/pg_basebackup",
            "--pgdata",
            self.staging,
            "--dbname",
            conninfo(source),
            "--slot",
            self.params["slot"],
            "--wal-method",
            "stream",
            "--checkpoint",
            "fast",
            "--progress",
            "--no-password",
        ]
        deadline = time.monotonic() + SLOT_BUSY_TIMEOUT_S
        while True:
            with open(self.backup_log, "w") as progress:
                done = self.server.as_user(command, stderr=progress)
            if done.returncode == 0:
                break
            with open(self.backup_log) as handle:
                text = handle.read()
            # The sender of an interrupted copy holds the slot until the primary notices.
            if "is active for PID" not in text or time.monotonic() > deadline:
                raise PostgresError(
                    f"pg_basebackup from {source.get('host')} failed with {done.returncode}: {text.strip()[-1500:]}"
                )
            shutil.rmtree(self.staging, ignore_errors=True)
            time.sleep(1)
        with open(os.path.join(self.staging, "postgresql.auto.conf")) as handle:
            copied = handle.read()
        seed = {**self.params["seed"], "primary_conninfo": conninfo(source)}
        self.write("postgresql.auto.conf", replica_auto_conf(copied, seed))
        self.write("standby.signal", "")

    def write(self, name: str, content: str) -> None:
        path, entry = os.path.join(self.staging, name), pwd.getpwnam(SYSTEM_USER)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chown(path, entry.pw_uid, entry.pw_gid)
        sync_directory(self.staging)

    def swap(self) -> None:
        if os.path.isdir(self.server.data):
            if os.listdir(self.server.data):
                self.actions.append(f"replaced the empty cluster that the package made in {self.server.data}")
            os.rename(self.server.data, self.replaced)
        os.rename(self.staging, self.server.data)
        sync_directory(self.server.base)
        shutil.rmtree(self.replaced, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time on this host; a child that outlives an interrupted run holds the lock until it ends."""
        os.makedirs(self.server.base, exist_ok=True)
        lock = self.server.lock = os.open(
            f"{self.server.base}/.{self.server.cluster}.lock", os.O_RDWR | os.O_CREAT, 0o600
        )
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise PostgresError(
                            f"another run has been making {self.server.data} for {LOCK_TIMEOUT_S} s; "
                            f"see {self.backup_log}."
                        ) from None
                    time.sleep(1)
            yield
        finally:
            os.close(lock)
            self.server.lock = None


def sync_directory(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
