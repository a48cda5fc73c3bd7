"""The index from the ledger, and how the two are kept alike, against their own statements on a ledger in memory."""

import pytest
from pbml_doubles import Ledger
from prometheus_client import REGISTRY

from devmentor.pbml import maintenance as maintenance_loop
from devmentor.pbml.index import IndexUnavailable, Stored, point_id
from devmentor.pbml.maintenance import Maintenance
from devmentor.pbml.pipeline import Pipeline
from devmentor.pbml.rebuild import Progress, Rebuild, read_progress
from devmentor.pbml.reconcile import Reconciler
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import maintenance
from devmentor.pbml.store.acceptance import accept_deletion


class Points:
    """The index: points by their id. `exists`: whether there is a collection."""

    def __init__(self) -> None:
        self.points: dict[str, tuple[str, str, int, int]] = {}
        self.exists = True
        self.upserts = 0
        self.fail_after: int | None = None
        self.meanwhile = None

    async def upsert(self, points) -> None:
        if self.fail_after is not None and self.upserts >= self.fail_after:
            raise IndexUnavailable("away")
        self.upserts += 1
        self.points |= {p.id: (p.tenant, p.document_id, p.version, p.chunk) for p in points}

    async def remove(self, tenant, document_id, up_to) -> None:
        self.points = {
            name: key for name, key in self.points.items() if not (key[:2] == (tenant, document_id) and key[2] <= up_to)
        }

    async def present(self, ids):
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.points.keys() & set(ids)

    async def scroll(self, after, limit):
        names = sorted(name for name in self.points if after is None or name >= after)
        page = [Stored(name, *self.points[name][:3]) for name in names[:limit]]
        return page, names[limit] if len(names) > limit else None

    async def remove_points(self, ids) -> None:
        for name in ids:
            del self.points[name]

    async def count(self) -> int:
        return len(self.points)

    async def lost(self) -> bool:
        return not self.exists

    async def ensure(self) -> list[str]:
        made, self.exists = not self.exists, True
        return ["collection"] if made else []

    @property
    def documents(self) -> set[tuple[str, int]]:
        return {key[1:3] for key in self.points.values()}


async def embed(texts):
    return [[1.0, 0.0] for _ in texts]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def points() -> Points:
    return Points()


@pytest.fixture
async def filled(ledger, points) -> set[str]:
    """The points of five live documents, one of them in its second version."""
    pipeline = Pipeline(ledger, points, embed, 500, 10)
    for document in "abcde":
        ledger.accept(1, document=document)
        await pipeline.run("t", document, 1)
    ledger.accept(2, document="c")
    await pipeline.run("t", "c", 2)
    points.upserts = 0
    return set(points.points)


def rebuild(ledger, points, holder: str = "one", page: int = 2) -> Rebuild:
    return Rebuild(ledger, points, holder, page)


async def test_every_live_version_gets_its_points_again_and_no_other(ledger, points, filled):
    points.points.clear()
    work = rebuild(ledger, points)
    await work.want("test", incomplete=True)
    lines = []
    done = await work.advance(60, lambda p: lines.append(p.line()))
    assert done.finished
    assert set(points.points) == filled
    assert [line.split(" points")[0] for line in lines] == ["2 of 5", "4 of 5", "5 of 5"]
    assert not await maintenance.index_incomplete(ledger)


async def test_it_goes_on_where_it_was_interrupted(ledger, points, filled):
    points.points.clear()
    points.fail_after = 1
    work = rebuild(ledger, points)
    await work.want("test", incomplete=True)
    with pytest.raises(IndexUnavailable):
        await work.advance(60)
    assert await maintenance.index_incomplete(ledger), "fetches must not rely on half an index"
    points.fail_after = None
    # The killed one's lease has to run out first.
    assert await rebuild(ledger, points, "two").advance(60) is None
    ledger.clock += 61
    done = await rebuild(ledger, points, "two").advance(60)
    assert (done.finished, done.done) == (True, 5)
    assert points.upserts == 3, "the page that was written is not written again"
    assert set(points.points) == filled


async def test_who_lost_the_lease_stops(ledger, points, filled):
    work = rebuild(ledger, points)
    await work.want("test", incomplete=False)

    def taken(_progress: Progress) -> None:
        ledger.db.execute("UPDATE maintenance SET holder = 'two' WHERE task = 'rebuild'")

    assert await work.advance(60, taken) is None
    assert points.upserts == 2


async def test_a_collection_that_is_emptied_under_a_rebuild_is_filled_from_the_beginning(ledger, points, filled):
    work = rebuild(ledger, points)
    await work.want("test", incomplete=True)
    emptied = []

    def empty(progress: Progress) -> None:
        if progress.done == 4 and not emptied:
            emptied.append(progress)
            points.points.clear()

    assert (await work.advance(60, empty)).finished
    assert emptied
    assert set(points.points) == filled


async def test_a_version_that_is_about_to_go_live_is_rebuilt_too(ledger, points, filled):
    ledger.accept(1, document="z")
    points.fail_after = 0
    with pytest.raises(IndexUnavailable):
        await Pipeline(ledger, points, embed, 500, 10).run("t", "z", 1)
    assert ledger.db.execute("SELECT status FROM versions WHERE document_id = 'z'").fetchone()[0] == "embedded"
    points.fail_after = None
    work = rebuild(ledger, points)
    await work.want("test", incomplete=True)
    await work.advance(60)
    assert ("z", 1) in points.documents


def reconciler(ledger, points, limit: int = 2) -> Reconciler:
    return Reconciler(ledger, points, "one", limit)


def mended(difference: str) -> float:
    return REGISTRY.get_sample_value("pbml_reconciled_points_total", {"difference": difference})


async def steps(made: Reconciler, number: int) -> None:
    for _ in range(number):
        assert await made.step()


async def test_missing_points_are_written_and_orphans_removed_in_bounded_steps(ledger, points, filled):
    lost = point_id("t", "d", 1, 0)
    del points.points[lost]
    for orphan in (("t", "c", 1, 0), ("t", "never", 1, 0)):
        points.points[point_id(*orphan)] = orphan
    before = {name: mended(name) for name in ("missing", "orphan")}
    await steps(reconciler(ledger, points), 1)
    assert points.points.keys() != filled, "one step is not all"
    await steps(reconciler(ledger, points), 6)
    assert points.points.keys() == filled
    for difference, number in (("missing", 1), ("orphan", 2)):
        assert mended(difference) - before[difference] == number


async def test_what_is_deleted_while_it_is_compared_does_not_come_back(ledger, points, filled):
    points.points.clear()

    async def delete() -> None:
        points.meanwhile = None
        await accept_deletion(ledger, "t", "a")

    points.meanwhile = delete
    await steps(reconciler(ledger, points, 10), 1)
    assert points.documents == {("b", 1), ("c", 2), ("d", 1), ("e", 1)}


async def test_points_of_a_version_on_its_way_are_left(ledger, points, filled):
    ledger.accept(2, document="a")
    ledger.db.execute("UPDATE versions SET status = 'embedded' WHERE document_id = 'a' AND version = 2")
    points.points["z"] = ("t", "a", 2, 0)
    await steps(reconciler(ledger, points, 10), 2)
    assert points.points.keys() == filled | {"z"}


async def test_one_worker_reconciles(ledger, points, filled):
    assert await reconciler(ledger, points).step()
    other = Reconciler(ledger, points, "two", 2)
    assert not await other.step()
    ledger.clock += 61
    assert await other.step()


@pytest.fixture
def loop(ledger, points) -> Maintenance:
    return Maintenance(Settings(tenants_file=None, rebuild_page=2), ledger, points)


@pytest.mark.parametrize("exists", [False, True])
async def test_a_lost_collection_is_filled_again(loop, ledger, points, filled, exists):
    """Also where another has already made it, empty, in its place."""
    points.points.clear()
    points.exists = exists
    await loop.turn()
    assert points.exists
    assert set(points.points) == filled
    assert not await maintenance.index_incomplete(ledger)


async def test_fetches_know_before_there_is_an_empty_collection(loop, ledger, points, filled):
    points.points.clear()
    points.exists = False

    async def ensure() -> list[str]:
        assert await maintenance.index_incomplete(ledger)
        raise IndexUnavailable("away")

    points.ensure = ensure
    with pytest.raises(IndexUnavailable):
        await loop.turn()
    assert await maintenance.index_incomplete(ledger)


async def test_a_missing_collection_of_an_empty_ledger_makes_no_answer_degraded(loop, ledger, points):
    points.exists = False
    await loop.turn()
    assert points.exists
    assert not await maintenance.index_incomplete(ledger)


async def test_some_missing_points_are_for_the_reconciler(loop, ledger, points, filled):
    del points.points[point_id("t", "d", 1, 0)]
    await loop.turn()
    async with ledger.read() as c:
        assert read_progress((await maintenance.look(c, "rebuild")).state) is None
    assert set(points.points) == filled


async def test_the_loop_outlives_what_is_away(loop, points, monkeypatch):
    turns = []

    async def lost() -> bool:
        turns.append(1)
        if len(turns) == 3:
            raise KeyboardInterrupt
        raise IndexUnavailable("away") if len(turns) == 1 else ValueError("a fault of ours")

    async def no_time(_seconds) -> None:
        pass

    points.lost = lost
    monkeypatch.setattr(maintenance_loop.asyncio, "sleep", no_time)
    with pytest.raises(KeyboardInterrupt):
        await loop.run()
