"""The way of a version to readers, against the pipeline's own statements on a ledger in memory."""

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
