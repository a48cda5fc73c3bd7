"""The way of a version to readers, against the pipeline's own statements on a ledger in memory."""

import asyncio

import psycopg
import pytest
from pbml_doubles import Ledger

from devmentor.pbml.pipeline import Pipeline
from devmentor.pbml.store import versions
from devmentor.pbml.store.versions import Version


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
    assert ledger.column("chunker") == ["2 prose 500", "2 prose 500"]


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


class Counted(Ledger):
    """A ledger that counts its transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    async def write(self, work, timeout_s=None):
        self.writes += 1
        await asyncio.sleep(0)
        return await super().write(work, timeout_s)


async def test_documents_that_come_together_share_transactions(points):
    ledger = Counted()
    pipeline = Pipeline(ledger, points, embed, 500, 10)
    for n in range(20):
        ledger.accept(1, document=f"d{n}")
    await asyncio.gather(*(pipeline.run("t", f"d{n}", 1) for n in range(20)))
    assert ledger.statuses == ["live"] * 20
    assert ledger.writes <= 8, "twenty documents one by one take 40"


async def test_two_versions_of_a_document_at_the_same_moment_are_not_written_in_one_transaction(
    pipeline, ledger, points, monkeypatch
):
    """PostgreSQL would take either of the two for the one UPDATE."""
    go_live, together = versions.go_live, []

    async def noted(c, given):
        together.append(len(given))
        return await go_live(c, given)

    monkeypatch.setattr(versions, "go_live", noted)
    ledger.accept(1)
    ledger.accept(2)
    await asyncio.gather(pipeline.run("t", "d", 1), pipeline.run("t", "d", 2))
    assert together == [1, 1]
    assert ledger.statuses == ["superseded", "live"]
    assert (ledger.chunked, points.versions) == ([2], {2})


async def test_the_same_version_twice_at_the_same_moment_is_written_once(pipeline, ledger):
    ledger.accept(1)
    await asyncio.gather(pipeline.run("t", "d", 1), pipeline.run("t", "d", 1))
    assert (ledger.statuses, ledger.chunked) == (["live"], [1])


async def test_a_run_that_finds_its_chunks_written_goes_on_from_there(pipeline, ledger, points, monkeypatch):
    """The run that wrote them may be gone: a job that ended here would be a version that nobody makes live."""
    ledger.accept(1)
    before = pipeline._save_all

    async def gone(given):
        await before(given)
        return await before(given)

    monkeypatch.setattr(pipeline._save, "_call", gone)
    await pipeline.run("t", "d", 1)
    assert (ledger.statuses, ledger.chunked, points.versions) == (["live"], [1], {1})


async def test_a_large_text_is_not_loaded_with_others_and_goes_its_way_alone(ledger, points, monkeypatch):
    pipeline = Pipeline(ledger, points, embed, 500, 10)
    text = "word " * 60_000
    for name in ("large", "d"):
        ledger.accept(1, document=name)
    ledger.db.execute(
        "UPDATE versions SET content = ?, content_bytes = ? WHERE document_id = 'large'", (text, len(text))
    )
    loaded = []
    load = pipeline._load_all

    async def load_all(keys):
        found = await load(keys)
        loaded.extend((each.version.document_id, each.version.content) for each in found)
        return found

    monkeypatch.setattr(pipeline._load, "_call", load_all)
    shared = []
    save = pipeline._save._call

    async def save_all(given):
        shared.extend(cut.version.document_id for cut in given)
        return await save(given)

    monkeypatch.setattr(pipeline._save, "_call", save_all)
    await asyncio.gather(pipeline.run("t", "large", 1), pipeline.run("t", "d", 1))
    assert sorted(loaded) == [("d", "text 1"), ("large", None)]
    assert shared == ["d"]
    assert ledger.statuses == ["live", "live"]
    assert len(ledger.chunked) > 300


async def test_a_version_that_was_given_up_meanwhile_does_not_go_live(pipeline, ledger, points):
    ledger.accept(1)

    async def give_up():
        ledger.db.execute("UPDATE versions SET status = 'failed'")

    points.first_upsert = give_up
    await pipeline.run("t", "d", 1)
    assert ledger.statuses == ["failed"]
    assert ledger.texts == ["text 1"], "an operator may have it tried again"
    assert ledger.db.execute("SELECT live_version FROM documents").fetchone()[0] == 0


async def test_a_row_that_is_pretended_to_be_held_stops_its_own_document_alone(pipeline, ledger, monkeypatch):
    go_live = versions.go_live

    async def held(c, given):
        if any(v.document_id == "held" for v in given):
            raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        return await go_live(c, given)

    monkeypatch.setattr(versions, "go_live", held)
    for name in ("a", "held", "c"):
        ledger.accept(1, document=name)
    results = await asyncio.gather(*(pipeline.run("t", n, 1) for n in ("a", "held", "c")), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), psycopg.errors.LockNotAvailable, type(None)]
    assert sorted(ledger.statuses) == ["indexed", "live", "live"]


async def test_a_document_that_the_index_refuses_fails_alone(pipeline, ledger, points):
    async def upsert(given):
        if any(point.document_id == "bad" for point in given):
            raise ValueError("no")

    points.upsert = upsert
    for name in ("a", "bad", "c"):
        ledger.accept(1, document=name)
    results = await asyncio.gather(*(pipeline.run("t", n, 1) for n in ("a", "bad", "c")), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]
    assert sorted(ledger.statuses) == ["embedded", "live", "live"]
