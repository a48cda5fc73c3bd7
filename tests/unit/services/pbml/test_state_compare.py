"""The state compared with PostgreSQL and with other replicas, and what happens when PostgreSQL becomes another one."""

import random
import time

import psycopg
import pytest
from state_world import Ledger, Postgres, Replica, accept, delete, go_live, ingest, new_ledger, say

from devmentor.pbml.state import metrics, source
from devmentor.pbml.state.entry import NOTHING, exchanged, item
from devmentor.pbml.store import pins


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
def ledger(postgres) -> Ledger:
    return new_ledger(postgres)


def mismatches(against: str) -> float:
    return metrics.MISMATCHES.labels(against)._value.get()


async def truth(ledger: Ledger) -> dict[str, str]:
    """PostgreSQL's own digests, by tenant."""
    found = {}
    async with ledger.transaction() as c:
        for tenant in await source.tenants(c):
            keys, _ended = await source.names(c, tenant, "", 10_000, 10**9)
            total = NOTHING
            for one in (await source.items(c, keys)).values():
                total = exchanged(total, None, one)
            if total != NOTHING:
                found[tenant] = total.hex()
    return found


def test_a_digest_does_not_depend_on_the_order_and_forgets_what_is_taken_away():
    items = [random.Random(number).randbytes(32) for number in range(50)]
    one = two = NOTHING
    for number in items:
        one = exchanged(one, None, number)
    for number in items[::-1]:
        two = exchanged(two, None, number)
    assert one == two != NOTHING
    for number in items:
        two = exchanged(two, number, None)
    assert two == NOTHING
    assert exchanged(one, items[0], items[0]) == one


async def test_postgresql_and_python_make_the_same_items(ledger):
    await ledger.do(ingest, "ä/ö", "Ein Text mit Umlauten: äöü, 日本語, 🎉. " * 40, title="Titel ß")
    await ledger.do(accept, "ä/ö", "waits")
    await ledger.do(accept, "ä/ö", "waits too")
    await ledger.do(accept, "new", "waits")
    await ledger.do(accept, "failed", "given up")
    await ledger.do(ingest, "plain", "text")
    v = await ledger.do(say, "c", "live", "said and live")
    await ledger.do(go_live, v)
    await ledger.do(say, "c", "waits", "said")
    await ledger.do(say, "c", "deleted", "said")
    await ledger.do(delete, "~turn/c/deleted")
    await ledger.do(ingest, "deleted", "text")
    await ledger.do(delete, "deleted")
    await ledger.do(ingest, "again", "text")
    await ledger.do(delete, "again")
    await ledger.do(ingest, "again", "text after the deletion")
    with psycopg.connect(ledger.conninfo) as c:
        c.execute("UPDATE versions SET status = 'failed' WHERE document_id = 'failed'")
    async with ledger.transaction() as c:
        keys, ended = await source.names(c, "t", "", 100, 10**9)
        assert ended
        assert len(keys) == 9
        made = {entry.key: item(entry) for entry in await source.entries(c, keys, {})}
        assert {key: value for key, value in made.items() if value is not None} == await source.items(c, keys)
        assert {name for (_t, name), value in made.items() if value is None} == {"deleted", "~turn/c/deleted"}


DAMAGE = {
    "a text": "UPDATE texts SET body = 'other' WHERE rowid = 1",
    "a vector": "UPDATE chunks SET vector = zeroblob(32) WHERE id = 1",
    "a chunk is lost": "DELETE FROM chunks WHERE id = 1",
    "a document is lost": "DELETE FROM documents WHERE id = 1",
    "another version": "UPDATE documents SET version = 7 WHERE id = 1",
    "an item": "UPDATE documents SET item = randomblob(32) WHERE id = 1",
    "the digest": "UPDATE tenants SET digest = randomblob(32)",
    "a document too many": "INSERT INTO documents SELECT 99, 't', 'zz', randomblob(32), version, seq, kind, NULL, NULL,"
    " chunks_sha256 FROM documents WHERE id = 1",
    "a tenant too many": "INSERT INTO documents SELECT 99, 'v', 'zz', randomblob(32), version, seq, kind, NULL, NULL,"
    " chunks_sha256 FROM documents WHERE id = 1; INSERT INTO tenants VALUES ('v', randomblob(32))",
    "a turn": "UPDATE turns SET content = 'other'",
    "what waits": "DELETE FROM waiting",
}


@pytest.mark.parametrize("what", DAMAGE)
async def test_what_differs_from_postgresql_is_found_and_mended(ledger, tmp_path, what):
    for name in "abcde":
        await ledger.do(ingest, name, f"text of {name}")
    await ledger.do(say, "c", "1", "hello")
    await ledger.do(pins.put, "t", "", "fact", "pinned", 9)
    async with Replica(ledger.conninfo, tmp_path / "one", state_compare_documents=2, state_compare_s=0.0001) as one:
        await one.settle()
        expected, bodies = one.file.digests(), one.bodies()
        assert expected == await truth(ledger)
        before = mismatches("postgres")
        for _ in range(8):
            await one.settle()
        assert mismatches("postgres") == before, "nothing differs"
        one.file.db.executescript(DAMAGE[what])
        one.file.db.execute("DELETE FROM pins")
        for _ in range(12):
            await one.settle()
        assert mismatches("postgres") > before
        assert one.file.digests() == expected
        assert one.bodies() == bodies
        assert one.file.pinned() == [("t", "")]
        assert all(one.file.item(key) == one.file.noted(key) for key in one.file.between("t", "", None))


async def test_a_replica_that_differs_from_another_finds_what_and_mends_it(ledger, tmp_path):
    for name in "abcde":
        await ledger.do(ingest, name, f"text of {name}")
    often = {"state_publish_s": 0.0001}
    async with (
        Replica(ledger.conninfo, tmp_path / "one", **often) as one,
        Replica(ledger.conninfo, tmp_path / "two", replica="two", **often) as two,
    ):
        await one.settle()
        await two.settle()
        expected, before = one.file.digests(), mismatches("replica")
        await one.settle()
        assert mismatches("replica") == before
        two.file.db.executescript(
            "DELETE FROM documents WHERE document_id = 'c'; UPDATE tenants SET digest = zeroblob(32)"
        )
        await two.settle()
        assert mismatches("replica") == before + 1
        await two.settle()
        assert two.file.digests() == expected
        assert set(two.bodies()) == set("abcde")
        await one.settle()
        assert one.file.digests() == expected


async def test_after_a_failover_nothing_is_missed_though_numbers_of_transactions_come_again(postgres, tmp_path):
    ledger = new_ledger(postgres)
    await ledger.do(ingest, "a", "text of a")
    standby = Postgres(base=postgres)
    try:
        standby.start()
        with psycopg.connect(standby.conninfo(ledger.database)) as c:
            until = time.monotonic() + 30
            while c.execute("SELECT count(*) FROM documents").fetchone() != (1,):
                c.rollback()
                assert time.monotonic() < until
            # From here on the standby gets nothing: what is written now the failover throws away.
        standby.detach()
        await ledger.do(ingest, "lost", "only the old primary had it")
        await ledger.do(ingest, "a", "second text of a, lost as well")
        async with Replica(ledger.conninfo, tmp_path / "one") as one:
            await one.settle()
            assert set(one.bodies()) == {"a", "lost"}
            before = one.path
        standby.promote()
        new = Ledger(standby.conninfo(ledger.database))
        for number in range(5):
            await new.do(ingest, f"new{number}", f"text {number}")
        found = mismatches("postgres")
        async with Replica(new.conninfo, tmp_path / "one", state_compare_documents=1) as one:
            await one.settle()
            assert one.path == before, "it is not loaded anew"
            assert mismatches("postgres") == found + 1, "the log has all but the lost one, which the walk finds"
            assert one.bodies() == {"a": "text of a"} | {f"new{n}": f"text {n}" for n in range(5)}
            assert one.file.digests() == await truth(new)
            assert one.file.meta("position") is not None
    finally:
        standby.remove()


async def test_another_ledger_is_loaded_anew(postgres, ledger, tmp_path):
    await ledger.do(ingest, "a", "text of a")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
    other = new_ledger(postgres)
    await other.do(ingest, "b", "text of b")
    async with Replica(other.conninfo, tmp_path / "one") as one:
        await one.settle()
        assert set(one.bodies()) == {"b"}
        assert one.file.digests() == await truth(other)


@pytest.mark.parametrize("snapshot", ["900000:900000:", "nonsense"])
async def test_a_position_that_can_not_be_is_loaded_anew(ledger, tmp_path, snapshot):
    await ledger.do(ingest, "a", "text of a")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        before = one.path
        with one.file.writing():
            one.file.note(snapshot=snapshot)
        await one.settle()
        assert one.path != before
        assert set(one.bodies()) == {"a"}
