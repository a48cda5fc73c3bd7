"""The way of a version to readers, against the pipeline's own statements on a ledger in memory."""

import sqlite3
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from devmentor.pbml.pipeline import Pipeline
from devmentor.pbml.store import versions
from devmentor.pbml.store.versions import Version

TABLES = """
    CREATE TABLE documents (tenant, document_id, live_version DEFAULT 0, deleted_version DEFAULT 0);
    CREATE TABLE versions (tenant, document_id, version, kind, conversation_id, title, metadata, content,
        status DEFAULT 'received', failure, chunks, embedded_at, indexed_at, live_at);
    CREATE TABLE chunks (tenant, document_id, version, chunk, conversation_id, section, start_char, end_char, body,
        embedding);
    CREATE TABLE generations (tenant, shard, generation, PRIMARY KEY (tenant, shard));
"""


class Ledger:
    """Database and connection in one: SQLite is near enough to PostgreSQL for the statements of a pipeline."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self.db.create_function("now", 0, lambda: 0)
        self.db.create_function("greatest", 2, max)
        self.db.executescript(TABLES)
        self.db.execute("INSERT INTO documents (tenant, document_id) VALUES ('t', 'd')")

    def accept(self, version: int, kind: str = "document") -> None:
        self.db.execute(
            "INSERT INTO versions (tenant, document_id, version, kind, content) VALUES ('t', 'd', ?, ?, ?)",
            (version, kind, f"text {version}" if kind == "document" else None),
        )
        if kind == "deletion":
            self.db.execute("UPDATE documents SET deleted_version = ?", (version,))

    @asynccontextmanager
    async def read(self, timeout_s=None):
        yield self

    async def write(self, work, timeout_s=None):
        return SimpleNamespace(value=await work(self))

    async def execute(self, statement, values=()):
        cursor = self.db.execute(statement.replace("%s", "?"), values)

        async def fetchone():
            row = cursor.fetchone()
            return dict(row) if row else None

        async def fetchall():
            return [dict(row) for row in cursor.fetchall()]

        return SimpleNamespace(rowcount=cursor.rowcount, fetchone=fetchone, fetchall=fetchall)

    def cursor(self):
        @asynccontextmanager
        async def copy(_statement):
            async def write_row(row):
                self.db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

            yield SimpleNamespace(write_row=write_row)

        return SimpleNamespace(copy=copy)

    @property
    def statuses(self) -> list[str]:
        return [row["status"] for row in self.db.execute("SELECT status FROM versions ORDER BY version")]

    @property
    def texts(self) -> list[str | None]:
        return [row["content"] for row in self.db.execute("SELECT content FROM versions ORDER BY version")]

    @property
    def chunked(self) -> list[int]:
        return [row["version"] for row in self.db.execute("SELECT version FROM chunks ORDER BY version")]


class Points:
    """The index; `first_upsert` is awaited before the first points are written."""

    def __init__(self) -> None:
        self.versions: set[int] = set()
        self.first_upsert = None

    async def upsert(self, points) -> None:
        meanwhile, self.first_upsert = self.first_upsert, None
        if meanwhile is not None:
            await meanwhile()
        self.versions |= {point.version for point in points}

    async def remove(self, _tenant, _document_id, up_to) -> None:
        self.versions = {version for version in self.versions if version > up_to}


async def embed(texts):
    return [[1.0, 0.0] for _ in texts]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def points() -> Points:
    return Points()


@pytest.fixture
def pipeline(ledger: Ledger, points: Points) -> Pipeline:
    return Pipeline(ledger, points, embed, 500, 10)


async def test_a_newer_version_replaces_the_older_one(pipeline, ledger, points):
    for version in (1, 2):
        ledger.accept(version)
        await pipeline.run("t", "d", version)
    assert ledger.statuses == ["superseded", "live"]
    assert ledger.texts == [None, "text 2"]
    assert (ledger.chunked, points.versions) == ([2], {2})


async def test_a_second_run_of_the_same_job_leaves_what_the_first_made_live(pipeline, ledger, points):
    ledger.accept(1)
    await pipeline.run("t", "d", 1)
    ledger.accept(2)
    points.first_upsert = lambda: pipeline.run("t", "d", 2)
    await pipeline.run("t", "d", 2)
    assert ledger.statuses == ["superseded", "live"]
    assert ledger.texts == [None, "text 2"]
    assert (ledger.chunked, points.versions) == ([2], {2})


async def test_a_version_that_was_overtaken_meanwhile_is_removed(pipeline, ledger, points):
    ledger.accept(1)
    ledger.accept(2)
    points.first_upsert = lambda: pipeline.run("t", "d", 2)
    await pipeline.run("t", "d", 1)
    assert ledger.statuses == ["superseded", "live"]
    assert (ledger.chunked, points.versions) == ([2], {2})


async def test_a_deletion_removes_the_live_version(pipeline, ledger, points):
    ledger.accept(1)
    await pipeline.run("t", "d", 1)
    ledger.accept(2, "deletion")
    await pipeline.run("t", "d", 2)
    assert ledger.statuses == ["superseded", "live"]
    assert ledger.texts == [None, None]
    assert (ledger.chunked, points.versions) == ([], set())


async def test_what_is_live_is_never_dropped(pipeline, ledger):
    ledger.accept(1)
    await pipeline.run("t", "d", 1)
    await versions.drop_versions(ledger, Version("t", "d", 1, "document", None, None, None, "live"), up_to=1)
    assert (ledger.statuses, ledger.texts, ledger.chunked) == (["live"], ["text 1"], [1])
