"""A replica's local state beside a private PostgreSQL: what it has, and that it misses nothing."""

import psycopg
import pytest
from state_world import Ledger, Postgres, Replica, accept, delete, go_live, ingest, new_ledger, say

from devmentor.pbml import schema
from devmentor.pbml.state import published, source
from devmentor.pbml.store import pins
from devmentor.pbml.store.generations import shard_of


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
def ledger(postgres):
    return new_ledger(postgres)


async def truth(ledger: Ledger) -> dict[str, str]:
    """PostgreSQL's own digests, by tenant."""
    found = {}
    async with ledger.transaction() as c:
        for tenant in await source.tenants(c):
            keys, _ended = await source.names(c, tenant, "", 10_000, 10**9)
            total = sum(int.from_bytes(item, "big") for item in (await source.items(c, keys)).values()) % 2**256
            if total:
                found[tenant] = total.to_bytes(32, "big").hex()
    return found


async def test_a_load_and_what_follows_have_what_postgresql_has(ledger, tmp_path):
    await ledger.do(ingest, "a", "first text of a")
    await ledger.do(ingest, "b", "text of b", title="B")
    await ledger.do(say, "c", "1", "hello there")
    await ledger.do(ingest, "x", "another tenant's", tenant="u")
    await ledger.do(pins.put, "t", "", "fact", "pinned", 9)
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        assert one.bodies() == {"a": "first text of a", "b": "text of b"}
        assert one.file.digests() == await truth(ledger)
        await ledger.do(ingest, "a", "second text of a")
        await ledger.do(accept, "b", "waits")
        await ledger.do(ingest, "d", "a text that is long enough for several chunks. " * 30)
        await ledger.do(pins.remove, "t", "", "fact")
        await one.settle()
        assert one.bodies()["a"] == "second text of a"
        assert one.bodies()["b"] == "text of b"
        assert one.file.digests() == await truth(ledger)
        assert one.file.pinned() == []
        async with Replica(ledger.conninfo, tmp_path / "two", replica="two") as two:
            await two.settle()
            assert two.file.digests() == one.file.digests()
            assert two.file.meta("position") == one.file.meta("position") is not None


async def test_a_late_committer_is_not_missed_and_holds_nobody_up(ledger, tmp_path):
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        # Going live counts in one of 16 rows of the tenant: those of other rows do not wait for the late one.
        early = [name for name in map(str, range(9)) if shard_of(name) != shard_of("late")][:5]
        async with ledger.transaction() as late:
            await ingest(late, "late", "committed last")
            for name in early:
                await ledger.do(ingest, name, f"text {name}")
                await one.settle()
            assert set(one.bodies()) == set(early)
            assert one.file.meta("position") is None, "an older transaction is open: not comparable"
        await one.settle()
        assert one.bodies()["late"] == "committed last"
        assert one.file.digests() == await truth(ledger)
        assert one.file.meta("position") is not None


async def test_a_late_committer_during_a_load_is_not_missed(ledger, tmp_path):
    for number in range(20):
        await ledger.do(ingest, f"d{number}", f"text {number}")
    async with Replica(ledger.conninfo, tmp_path / "one") as one, ledger.transaction() as late:
        await ingest(late, "a-late", "committed last")
        await ingest(late, "d3", "newer text 3")
        for _ in range(4):
            assert await one.follower.turn()
        await late.commit()
        await one.settle()
        assert one.bodies()["a-late"] == "committed last"
        assert one.bodies()["d3"] == "newer text 3"
        assert one.file.digests() == await truth(ledger)


async def test_a_deleted_document_leaves_the_state(ledger, tmp_path):
    await ledger.do(ingest, "a", "a secret text")
    await ledger.do(say, "c", "1", "a secret turn")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        await ledger.do(delete, "a")
        await ledger.do(delete, "~turn/c/1")
        await one.settle()
        assert one.bodies() == {}
        assert one.file.digests() == await truth(ledger) == {}
        one.file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert b"a secret" not in one.path.read_bytes()


async def test_a_version_that_waits_and_one_that_was_given_up(ledger, tmp_path):
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        v = await ledger.do(accept, "a", "waits")
        await one.settle()
        rows = "SELECT version, content, failed FROM waiting"
        assert one.file.db.execute(rows).fetchall() == [(1, "waits", 0)]
        with psycopg.connect(ledger.conninfo) as c:
            c.execute("UPDATE versions SET status = 'failed', failure = 'no'")
        await one.settle()
        assert one.file.db.execute(rows).fetchall() == [(1, None, 1)]
        assert one.file.digests() == await truth(ledger)
        with psycopg.connect(ledger.conninfo) as c:
            c.execute("UPDATE versions SET status = 'received', failure = NULL")
        await ledger.do(go_live, v)
        await one.settle()
        assert one.file.db.execute(rows).fetchall() == []
        assert one.file.digests() == await truth(ledger)


async def test_many_changes_are_caught_up_in_groups(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr("devmentor.pbml.state.follow._SEVERAL", 3)
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        for number in range(10):
            await ledger.do(ingest, f"d{number}", f"text {number}")
        assert await one.follower.turn(), "there is more to do"
        assert one.file.meta("position") is None
        await one.settle()
        assert len(one.bodies()) == 10
        assert one.file.digests() == await truth(ledger)
        assert one.file.meta("position") is not None


async def test_a_replica_that_was_away_for_too_long_loads_anew(ledger, tmp_path):
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await ledger.do(ingest, "a", "one")
        await one.settle()
        before = one.path
    await ledger.do(ingest, "b", "two")
    await ledger.do(ingest, "c", "three")
    with psycopg.connect(ledger.conninfo) as c:
        c.execute("UPDATE replica_states SET seen_at = now() - interval '2 days'")
        c.execute("UPDATE changes SET at = now() - interval '2 days'")
    assert await ledger.do(published.prune, 900, 86400) > 0
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        assert one.path != before
        assert set(one.bodies()) == {"a", "b", "c"}
        assert one.file.digests() == await truth(ledger)
        assert one.file.meta("position") is not None


async def test_changes_that_a_replica_lacks_are_not_pruned(ledger, tmp_path):
    async with Replica(ledger.conninfo, tmp_path / "one", state_publish_s=0.001) as one:
        await ledger.do(ingest, "a", "one")
        await one.settle()
        await one.settle()
        await ledger.do(ingest, "b", "two")
        with psycopg.connect(ledger.conninfo) as c:
            c.execute("UPDATE changes SET at = now() - interval '1 hour'")
        assert await ledger.do(published.prune, 900, 86400) == 2
        before = one.path
        await one.settle()
        assert one.path == before
        assert set(one.bodies()) == {"a", "b"}


async def test_a_load_goes_on_where_it_was_killed(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr("devmentor.pbml.state.follow._SEVERAL", 2)
    for number in range(10):
        await ledger.do(ingest, f"d{number}", f"text {number}")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        for _ in range(6):
            assert await one.follower.turn()
        before, have = one.path, len(one.bodies())
        assert 0 < have < 10
    await ledger.do(delete, "d0")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        assert one.path == before
        assert one.file.digests() == await truth(ledger)


async def test_the_revision_goes_back_and_forth_while_documents_are_written(ledger):
    await ledger.do(ingest, "a", "one")
    schema.migrate(ledger.conninfo, "0005")
    await ledger.do(ingest, "a", "two")
    schema.migrate(ledger.conninfo, "head")
    await ledger.do(ingest, "a", "three")
    async with ledger.transaction() as c:
        found = await source.changed(c, source.BEFORE_ALL, 100)
    assert found.documents == [("t", "a")]
    assert [seq for seq, _tenant in found.seqs] == [3]
