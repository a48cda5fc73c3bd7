"""A PostgreSQL of the tests' own on loopback: for what only the real one can show. The newest that is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psycopg
import pytest

OWNER = "postgres"  # PostgreSQL refuses to run as root
NO_FSYNC = {"fsync": "off", "full_page_writes": "off"}
"""For a server that nothing must survive."""
SMALL = {"max_connections": "60", "shared_buffers": "16MB"}


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def programs() -> Path:
    """Where PostgreSQL's are; the test fails where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.fail("no PostgreSQL in /usr/lib/postgresql: run tools/bootstrap.sh")
    return found[-1].parent


class Postgres:
    """A server that is stopped, started, promoted; with a `base` its standby. `pbml` is the superuser, with trust."""

    def __init__(
        self, settings: Mapping[str, str] = NO_FSYNC, *, locale: str | None = "C", base: "Postgres | None" = None
    ) -> None:
        self._programs = programs()
        self.user = OWNER if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="pbml-pg-"))
        if self.user:
            shutil.chown(self.home, self.user)
        self.data, self.port = self.home / "data", free_port()
        self.running = False
        try:
            if base is None:
                words = ["-E", "UTF8", f"--locale={locale}"] if locale is not None else []
                self._run("initdb", "-D", self.data, "-U", "pbml", "-A", "trust", "--no-sync", *words)
            else:
                source = ["-h", "127.0.0.1", "-p", base.port, "-U", "pbml"]
                self._run("pg_basebackup", "-D", self.data, *source, "-R", "-c", "fast", "--no-sync")
            given = {
                "port": str(self.port),
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
                **settings,
            }
            with (self.data / "postgresql.conf").open("a") as conf:
                conf.write("".join(f"\n{name} = '{value}'" for name, value in given.items()) + "\n")
        except BaseException:
            shutil.rmtree(self.home)
            raise

    def _run(self, program: str, *arguments: object) -> None:
        # Its output goes nowhere: a server would inherit a pipe and hold it open.
        done = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            user=self.user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def __enter__(self) -> Self:
        """Started; removed at the end."""
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def start(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-l", self.home / "log", "-w", "-t", "60", "start")
        self.running = True

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")
        self.running = False

    def promote(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "promote")

    def detach(self) -> None:
        """A standby that gets nothing more from its primary."""
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as c:
            c.execute("ALTER SYSTEM SET primary_conninfo = ''")
            c.execute("SELECT pg_reload_conf()")
            while c.execute("SELECT count(*) FROM pg_stat_wal_receiver").fetchone() != (0,):
                time.sleep(0.05)

    def conninfo(self, database: str | None = None, connect_timeout: int = 20) -> str:
        """libpq's; without a database the caller adds one."""
        server = f"host=127.0.0.1 port={self.port} user=pbml connect_timeout={connect_timeout}"
        return server if database is None else f"{server} dbname={database}"

    def remove(self) -> None:
        if self.running:
            self.stop()
        shutil.rmtree(self.home)
