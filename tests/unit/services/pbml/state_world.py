"""A private PostgreSQL 15 with PBML's schema, documents in it, and replicas that follow it."""

import hashlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from devmentor.pbml import schema
from devmentor.pbml.db import Database
from devmentor.pbml.preprocess import prepare
from devmentor.pbml.settings import Settings
from devmentor.pbml.state import place
from devmentor.pbml.state.follow import Follower
from devmentor.pbml.store import versions
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.chunks import StoredChunk, save_chunks
from devmentor.pbml.store.versions import Version

BIN = Path("/usr/lib/postgresql/15/bin")
SRC = Path(__file__).resolve().parents[4] / "services" / "src"
DIMENSIONS = 8


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Postgres:
    """One cluster. As root its processes are postgres's: the server refuses to be root's."""

    def __init__(self, base: "Postgres | None" = None) -> None:
        self.user = "postgres" if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="state-pg-"))
        if self.user:
            shutil.chown(self.home, self.user)
        self.data, self.port = self.home / "data", free_port()
        self.running = False
        if base is None:
            self._run("initdb", "-D", self.data, "-U", "pbml", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        else:
            copied = [
                "-D",
                self.data,
                "-h",
                "127.0.0.1",
                "-p",
                base.port,
                "-U",
                "pbml",
                "-R",
                "-c",
                "fast",
                "--no-sync",
            ]
            self._run("pg_basebackup", *copied)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"\nport = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n"
                "max_connections = 60\nshared_buffers = 16MB\nfull_page_writes = off\nfsync = off\n"
            )

    def _run(self, program: str, *arguments) -> None:
        done = subprocess.run(
            [BIN / program, *map(str, arguments)],
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

    def conninfo(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} dbname={database} user=pbml connect_timeout=20"

    def remove(self) -> None:
        if self.running:
            self.stop()
        shutil.rmtree(self.home)


def settings(conninfo: str, directory: Path | None, **change) -> Settings:
    given = {"replica": "one", "state_compare_s": 3600, "state_publish_s": 3600, "state_checkpoint_s": 3600}
    return Settings(tenants_file=None, database=conninfo, state_dir=directory, **{**given, **change})


def vector_of(text: str) -> list[float]:
    """The same text is the same direction."""
    chance = random.Random(hashlib.sha256(text.encode()).digest())
    return [chance.uniform(-1, 1) for _ in range(DIMENSIONS)]


async def accept(c, name: str, text: str, tenant: str = "t", title: str | None = None) -> Version:
    given = await accept_document(c, tenant, name, title, {}, text)
    return Version(tenant, name, given.version, "document", None, title, text, "received")


async def say(c, conversation: str, name: str, text: str, tenant: str = "t") -> Version:
    document = f"~turn/{conversation}/{name}"
    given = await accept_turn(c, tenant, conversation, document, "user", text)
    return Version(tenant, document, given.version, "turn", conversation, None, text, "received")


async def go_live(c, v: Version) -> None:
    """What the pipeline does, without an index."""
    cut = prepare(v.document_id, v.title, v.content, 300).chunks
    rows = [StoredChunk(k.number, k.section, k.start, k.end, k.text, vector_of(k.text)) for k in cut]
    assert await save_chunks(c, v, rows, "test")
    await versions.mark_indexed(c, v)
    assert await versions.go_live(c, v)
    await versions.drop_versions(c, v, up_to=v.version - 1)


async def ingest(c, name: str, text: str, tenant: str = "t", title: str | None = None) -> None:
    await go_live(c, await accept(c, name, text, tenant, title))


async def delete(c, name: str, tenant: str = "t") -> None:
    given = await accept_deletion(c, tenant, name)
    await versions.drop_versions(c, Version(tenant, name, given.version, "deletion", None, None, None, "x"), up_to=99)


class Ledger:
    """PostgreSQL as the pipeline writes it: one transaction a call, or one that is held open."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        self.database = psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"]

    @asynccontextmanager
    async def transaction(self):
        rows = psycopg.rows.dict_row
        async with await psycopg.AsyncConnection.connect(self.conninfo, row_factory=rows) as c:
            yield c

    async def do(self, work, *arguments, **named):
        async with self.transaction() as c:
            return await work(c, *arguments, **named)


def new_ledger(server: Postgres) -> Ledger:
    """A database of the test's own, at the newest revision."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as c:
        c.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    schema.migrate(server.conninfo(name), "head")
    return Ledger(server.conninfo(name))


class Replica:
    """A follower, its rounds one by one."""

    def __init__(self, conninfo: str, directory: Path, **change) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.settings = settings(conninfo, directory, **change)
        self.database = Database(self.settings, "state-test")
        self.follower = Follower(self.settings, self.database, directory)

    async def __aenter__(self) -> "Replica":
        await self.database.open()
        return self

    async def __aexit__(self, *_error) -> None:
        await self.follower.close()
        await self.database.close()

    async def settle(self, rounds: int = 200) -> "Replica":
        """Rounds until there is nothing to do at once."""
        for _ in range(rounds):
            if not await self.follower.turn():
                return self
        raise AssertionError("it does not come to an end")

    @property
    def file(self):
        return self.follower.file

    @property
    def path(self) -> Path:
        found = place.current(self.directory)
        assert found is not None
        return found

    def bodies(self, tenant: str = "t") -> dict[str, str]:
        """The live texts by document."""
        found: dict[str, list[str]] = {}
        rows = self.file.db.execute(
            "SELECT d.document_id, x.body FROM documents d JOIN chunks k ON k.document = d.id"
            " JOIN texts x ON x.rowid = k.id WHERE d.tenant = ? ORDER BY d.document_id, k.chunk",
            (tenant,),
        )
        for name, body in rows:
            found.setdefault(name, []).append(body)
        return {name: "".join(parts) for name, parts in found.items()}
