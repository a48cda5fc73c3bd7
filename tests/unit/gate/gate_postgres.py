"""A private PostgreSQL primary and its replica on loopback, also reached over their sockets."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from gate_doubles import free_port

OWNER = "postgres"  # PostgreSQL refuses to run as root
AS_OWNER = ["runuser", "-u", OWNER, "--"] if os.geteuid() == 0 else []


def programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.fail("no PostgreSQL in /usr/lib/postgresql: run tools/bootstrap.sh")
    return found[-1].parent


@dataclass
class Server:
    """One server. Its socket is in `folder`."""

    folder: Path
    port: int

    def control(self, *words: str) -> None:
        command = [*AS_OWNER, str(programs() / "pg_ctl"), "-D", str(self.folder / "data"), "-w", *words]
        subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.control("-o", options, "-l", str(self.folder / "log"), "start")

    def sql(self, text: str) -> str:
        command = ["psql", "-XAtq", "-h", "127.0.0.1", "-p", str(self.port), "-U", OWNER, "-d", "postgres", "-c", text]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def running(name: str, prepare: list[str], source: Server | None = None) -> Iterator[Server]:
    """A server that forgets everything at the end. prepare: the program that makes its data, and words."""
    base = Path(tempfile.mkdtemp(prefix=f"gate-{name}-"))
    if AS_OWNER:
        shutil.chown(base, OWNER)
    server = Server(base, free_port())
    program, *words = prepare
    command = [*AS_OWNER, str(programs() / program), "-D", str(base / "data"), *words]
    try:
        subprocess.run(command, check=True, cwd=base, stdout=subprocess.DEVNULL)
        server.start()
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(base)


@contextmanager
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary and a replica that streams from it."""
    with ExitStack() as stack:
        primary = stack.enter_context(running("primary", ["initdb", "-A", "trust", "-U", OWNER, "--no-sync"]))
        conninfo = f"host=127.0.0.1 port={primary.port} user={OWNER}"
        words = ["pg_basebackup", "-d", conninfo, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"]
        yield primary, stack.enter_context(running("replica", words))
