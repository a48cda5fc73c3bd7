"""A PostgreSQL of the tests' own, on loopback, with PBML's schema: for what only the real one can show."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from devmentor.pbml import counting, indexes, schema

_OWNER = "postgres"  # PostgreSQL refuses to run as root


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def server() -> Iterator[str]:
    """The conninfo of a server that forgets everything at the end; the test fails where none is installed."""
    programs = _programs()
    if programs is None:
        pytest.fail("no PostgreSQL in /usr/lib/postgresql: run tools/bootstrap.sh")
    as_owner = ["runuser", "-u", _OWNER, "--"] if os.geteuid() == 0 else []
    base = Path(tempfile.mkdtemp(prefix="pbml-ledger-"))
    if as_owner:
        shutil.chown(base, _OWNER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -k {base} -c listen_addresses=127.0.0.1 -c fsync=off -c full_page_writes=off"
    control = [*as_owner, str(programs / "pg_ctl"), "-D", str(base / "data"), "-w"]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=base, stdout=subprocess.DEVNULL)

    try:
        run(*as_owner, str(programs / "initdb"), "-D", str(base / "data"), "-A", "trust", "-U", "pbml", "--no-sync")
        run(*control, "-o", options, "-l", str(base / "log"), "start")
        try:
            yield f"host=127.0.0.1 port={port} user=pbml"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(base)


@contextmanager
def database(conninfo: str, name: str, template: str = "template0") -> Iterator[str]:
    """The conninfo of a database, empty or as the template is."""
    with psycopg.connect(f"{conninfo} dbname=postgres", autocommit=True) as c:
        c.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield f"{conninfo} dbname={name}"
    finally:
        with psycopg.connect(f"{conninfo} dbname=postgres", autocommit=True) as c:
            c.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def prepared() -> Iterator[str]:
    """A server whose database `prepared` is as `devmentor-pbml prepare` leaves it: a template for `database`."""
    with server() as conninfo, database(conninfo, "prepared") as whole:
        schema.migrate(whole)
        indexes.ensure(whole)
        counting.count_usage(whole)
        yield conninfo
