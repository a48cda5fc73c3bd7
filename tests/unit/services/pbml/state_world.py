"""A private PostgreSQL with PBML's schema, documents in it, and replicas that follow it."""

import hashlib
import random
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import private_postgres
import psycopg
from private_postgres import NO_FSYNC, SMALL
from psycopg import sql

from devmentor.pbml import schema
from devmentor.pbml.db import Database
from devmentor.pbml.preprocess import prepare
from devmentor.pbml.settings import Settings
from devmentor.pbml.state import place
from devmentor.pbml.state.follow import Follower
from devmentor.pbml.store import versions
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.chunks import Cut, StoredChunk, save_chunks
from devmentor.pbml.store.versions import Version

SRC = Path(__file__).resolve().parents[4] / "services" / "src"
DIMENSIONS = 8


class Postgres(private_postgres.Postgres):
    """A small one; with a `base` its standby."""

    def __init__(self, base: "Postgres | None" = None) -> None:
        super().__init__({**SMALL, **NO_FSYNC}, base=base)


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
    assert await save_chunks(c, [Cut(v, rows, "test")]) == [True]
    await versions.mark_indexed(c, [v])
    assert await versions.go_live(c, [v]) == [True]
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
