"""A private PostgreSQL on loopback: a primary and synchronous standbys, as the platform has them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from filter_plugins.postgres_tuning import postgres_tuning
from tests.bench.qwen.systems import free_port

DATABASE, USER = "devmentor", "pbml"
_OWNER = "postgres"  # PostgreSQL refuses to run as root
_START_S = 60


class NoPostgres(Exception):
    """There is none that could be started; the message says what to install."""


@dataclass(slots=True)
class Cluster:
    """A primary whose commits wait for one of its standbys (`ANY 1`), and their processes."""

    port: int
    standbys: int
    ports: list[int] = field(default_factory=list)

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} dbname={DATABASE} user={USER}"

    def connect(self, *, autocommit: bool = True, port: int | None = None) -> psycopg.Connection:
        return psycopg.connect(
            f"host=127.0.0.1 port={port or self.port} dbname={DATABASE} user={_OWNER}", autocommit=autocommit
        )

    def quorum(self) -> int:
        """Standbys that are connected and count for the quorum."""
        with self.connect() as c:
            row = c.execute("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'").fetchone()
        assert row is not None
        return int(row[0])

    def settings(self) -> dict[str, str]:
        names = ["synchronous_standby_names", "synchronous_commit", "fsync", "shared_buffers", "server_version"]
        with self.connect() as c:
            found = c.execute("SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", (names,))
            return dict(found.fetchall())

    @contextmanager
    def receivers_stopped(self) -> Iterator[None]:
        """No standby takes WAL: what is written now must not be acknowledged."""
        pids: list[int] = []
        for port in self.ports:
            with self.connect(port=port) as c:
                pids += [row[0] for row in c.execute("SELECT pid FROM pg_stat_wal_receiver")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def programs() -> Path:
    """Where PostgreSQL's programs are. Raises NoPostgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        raise NoPostgres("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    return found[-1].parent


def tuning(memory_gib: float) -> dict[str, str]:
    """What role postgres computes for a slice of that size on this machine."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    cores = os.cpu_count() or 1
    facts = {"memtotal_mb": total, "processor_vcpus": cores, "mounts": []}
    return dict(postgres_tuning({"cpu_max": cores, "memory_max_gib": memory_gib}, facts))


@contextmanager
def cluster(directory: Path, standbys: int, memory_gib: float) -> Iterator[Cluster]:
    """Runs until the block ends; its data is below `directory`."""
    tools = programs()
    owner = _OWNER if os.geteuid() == 0 else None
    if owner:
        shutil.chown(directory, owner)
    running = Cluster(free_port(), standbys)

    def tool(*command: str) -> None:
        done = subprocess.run(command, user=owner, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoPostgres(f"{' '.join(command)} exited with {done.returncode}: {done.stderr.strip()[-500:]}")

    def start(stack: ExitStack, data: Path, port: int) -> None:
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
        control = [str(tools / "pg_ctl"), "-D", str(data), "-w", "-t", str(_START_S)]
        tool(*control, "-l", str(data / "server.log"), "-o", options, "start")
        stack.callback(tool, *control, "-m", "immediate", "stop")

    with ExitStack() as stack:
        primary = directory / "primary"
        tool(str(tools / "initdb"), "-D", str(primary), "-U", _OWNER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        settings = {
            **tuning(memory_gib),
            "wal_level": "logical",
            "wal_log_hints": "on",
            "synchronous_commit": "on",
            "hot_standby": "on",
            "max_connections": "200",
            "max_wal_senders": "20",
            "default_text_search_config": "pg_catalog.english",
        }
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        with (primary / "postgresql.conf").open("a") as conf:
            conf.write(text)
        start(stack, primary, running.port)
        admin = f"host=127.0.0.1 port={running.port} user={_OWNER} dbname=postgres"
        with psycopg.connect(admin, autocommit=True) as c:
            c.execute(f"CREATE ROLE {USER} LOGIN")
            c.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}")
        for number in range(1, standbys + 1):
            data, name, port = directory / f"standby{number}", f"standby{number}", free_port()
            source = f"host=127.0.0.1 port={running.port} user={_OWNER} application_name={name}"
            tool(
                *(str(tools / "pg_basebackup"), "-D", str(data), "-d", source, "-R", "-X", "stream", "-c", "fast"),
                *("-C", "-S", name),
            )
            with (data / "postgresql.conf").open("a") as conf:  # the machine's memory is the primary's
                conf.write("shared_buffers = '128MB'\n")
            start(stack, data, port)
            running.ports.append(port)
        if standbys:
            names = ", ".join(f"standby{number}" for number in range(1, standbys + 1))
            with psycopg.connect(admin, autocommit=True) as c:
                c.execute(f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({names})'")
                c.execute("SELECT pg_reload_conf()")
        yield running
