"""What is older than its tenant keeps goes, on a real PostgreSQL; Qdrant is played."""

import asyncio

import private_ledger
import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg.rows import dict_row
from test_quota import server  # noqa: F401 # a fixture

from devmentor.pbml import commands, indexes
from devmentor.pbml.db import Database
from devmentor.pbml.maintenance import Maintenance
from devmentor.pbml.retention import Retention
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import expiry, generations, ledger, listing, maintenance, usage
from devmentor.pbml.store.acceptance import accept_document, accept_turn
from devmentor.pbml.store.usage import Usage

DAYS = {"t": {"documents_days": 30, "turns_days": 7}}


@pytest.fixture
def conninfo(server):  # noqa: F811
    with private_ledger.database(server, "retention", "prepared") as made:
        yield made


@pytest.fixture
async def c(conninfo):
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True, row_factory=dict_row) as made:
        yield made


@pytest.fixture
async def database(conninfo):
    made = Database(Settings(tenants_file=None, database=conninfo), "test")
    await made.open()
    yield made
    await made.close()


def settings(conninfo: str, **given) -> Settings:
    return Settings(tenants_file=None, database=conninfo, reconcile_points=0, **{"retention": DAYS, **given})


async def ingest(c, name: str, *ages: int, tenant: str = "t") -> None:
    """A document with a version of each age in days."""
    for age in ages:
        accepted = await accept_document(c, tenant, name, None, {}, f"text of {name}")
        await _age(c, accepted.seq, age)


async def say(c, name: str, age: int, conversation: str = "c") -> None:
    accepted = await accept_turn(c, "t", conversation, f"~turn/{conversation}/{name}", "user", name)
    await _age(c, accepted.seq, age)


async def _age(c, seq: int, days: int) -> None:
    # Live, so that the sweep does not wait for a job that nobody runs here.
    statement = "UPDATE versions SET received_at = now() - make_interval(days => %s), status = 'live' WHERE seq = %s"
    await c.execute(statement, (days, seq))


async def there(c, tenant: str = "t") -> list[str]:
    return [row["document_id"] for row in (await listing.documents(c, tenant, "", 99))[0]]


class NoPoints:
    """Qdrant, played: which documents it was told to forget."""

    def __init__(self) -> None:
        self.removed: set[str] = set()

    async def lost(self) -> bool:
        return False

    async def count(self, _tenant=None) -> int:
        return 0

    async def remove(self, _tenant, document_id, _up_to) -> None:
        self.removed.add(document_id)

    async def remove_documents(self, _tenant, ids) -> None:
        self.removed |= set(ids)


async def test_what_is_too_old_is_gone_at_once_and_then_its_text(c, conninfo, database):
    await ingest(c, "old", 31)
    await ingest(c, "young", 29)
    await ingest(c, "replaced lately", 400, 1)
    await ingest(c, "of another", 400, tenant="u")
    await say(c, "old", 8)
    await say(c, "young", 6)
    before = [await generations.current(c, "t", name) for name in (None, "c")]
    assert await Retention(settings(conninfo), database, "one").round() is True
    assert await there(c) == ["replaced lately", "young"]
    assert await there(c, "u") == ["of another"]
    assert await ledger.document_status(c, "t", "old") is None
    assert [turn.content for turn in await ledger.recent_turns(c, "t", "c", 9)] == ["young"]
    after = [await generations.current(c, "t", name) for name in (None, "c")]
    assert after[0][0] > before[0][0], "a cache keyed by the context's version must not serve what is gone"
    assert after[1][1] > before[1][1]
    assert await usage.read(c, "t") == Usage(len("text of young") + len("text of replaced lately") + 5, 2, 1)
    index = NoPoints()
    await Maintenance(settings(conninfo), database, index).turn()
    assert index.removed == {"old", "~turn/c/old"}
    statement = "SELECT content, status FROM versions WHERE document_id = ANY(%s)"
    cursor = await c.execute(statement, (["old", "~turn/c/old"],))
    assert {(row["content"], row["status"]) for row in await cursor.fetchall()} == {
        (None, "superseded"),
        (None, "live"),
    }


async def test_maintenance_looks_from_time_to_time(c, conninfo, database):
    loop = Maintenance(settings(conninfo, retention_every_s=3600), database, NoPoints())
    await ingest(c, "a", 31)
    await loop.turn()
    assert await there(c) == []
    await ingest(c, "b", 31)
    await loop.turn()
    assert await there(c) == ["b"], "not before an hour is over"


async def test_pinned_facts_stay(c, conninfo, database):
    statement = "INSERT INTO pins VALUES (%s, %s, 'a', 'fact', '2000-01-01')"
    for conversation in ("", "c"):
        await c.execute(statement, ("t", conversation))
    await say(c, "old", 8)
    await Retention(settings(conninfo), database, "one").round()
    assert (await (await c.execute("SELECT count(*) AS pins FROM pins")).fetchone())["pins"] == 2


async def test_a_replacement_that_comes_while_it_is_removed_stays(c, conninfo, database):
    await ingest(c, "a", 31)
    await ingest(c, "b", 31)
    async with await psycopg.AsyncConnection.connect(conninfo, row_factory=dict_row) as other:
        await accept_document(other, "t", "a", None, {}, "new")
        work = asyncio.create_task(Retention(settings(conninfo), database, "one").round())
        await _waits(c)
        await other.commit()
        assert await work is True
    assert await there(c) == ["a"]
    assert (await ledger.document_status(c, "t", "a"))["version"] == 2


async def _waits(c) -> None:
    async with asyncio.timeout(20):
        while True:
            cursor = await c.execute("SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            if (await cursor.fetchone())["n"]:
                return
            await asyncio.sleep(0.02)


async def test_much_goes_in_batches_and_tenants_take_turns(c, conninfo, database, monkeypatch):
    monkeypatch.setattr(expiry.remove, "__defaults__", (2,))
    monkeypatch.setattr(expiry, "BATCH", 2)
    batches = []
    real = expiry.remove

    async def noted(c, tenant, kind, days):
        done = await real(c, tenant, kind, days)
        batches.append((tenant, kind, done.number))
        return done

    monkeypatch.setattr(expiry, "remove", noted)
    for tenant, names in (("t", "abcde"), ("u", "abc")):
        for name in names:
            await ingest(c, name, 31, tenant=tenant)
    kept = {"default": {"documents_days": 30}}
    labels = {"tenant": "t", "kind": "document"}
    before = REGISTRY.get_sample_value("pbml_retention_removed_total", labels) or 0
    assert await Retention(settings(conninfo, retention=kept), database, "one").round() is True
    assert batches == [
        ("t", "document", 2),
        ("u", "document", 2),
        ("t", "document", 2),
        ("u", "document", 1),
        ("t", "document", 1),
    ]
    assert REGISTRY.get_sample_value("pbml_retention_removed_total", labels) - before == 5


async def test_one_worker_at_a_time_and_who_lost_the_lease_stops(c, conninfo, database, monkeypatch):
    await ingest(c, "a", 31)
    async with database.pool.connection() as other, other.transaction():
        assert await maintenance.claim(other, "retention", "two", 60)
    assert await Retention(settings(conninfo), database, "one").round() is None
    assert await there(c) == ["a"]
    await c.execute("UPDATE maintenance SET held_until = now() WHERE task = 'retention'")

    async def taken(*_arguments) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(maintenance, "keep", taken)
        assert await Retention(settings(conninfo), database, "one").round() is None
    assert await there(c) == ["a"]
    assert await Retention(settings(conninfo), database, "one").round() is True
    assert await there(c) == []


async def test_without_rules_nothing_goes(c, conninfo, database):
    await ingest(c, "a", 4000)
    for kept in ({}, {"u": {"documents_days": 1}}, {"default": {"documents_days": 1}, "t": {}}):
        assert await Retention(settings(conninfo, retention=kept), database, "one").round() is True
    assert await there(c) == ["a"]


async def test_the_command_says_what_would_go_and_then_removes_it(c, conninfo):
    await ingest(c, "a", 31)
    await ingest(c, "b", 33)
    await say(c, "x", 1)
    said = await commands.retention(settings(conninfo), dry_run=True)
    oldest = (await ledger.document_status(c, "t", "b"))["received_at"].isoformat()
    assert said == {
        "changed": False,
        "dry_run": True,
        "too_old": {
            "t": {
                "documents": {"number": 2, "bytes": 18, "oldest": oldest, "older_than_days": 30},
                "turns": {"number": 0, "bytes": 0, "oldest": None, "older_than_days": 7},
            }
        },
    }
    assert await there(c) == ["a", "b"]
    assert (await commands.retention(settings(conninfo), dry_run=False))["changed"] is True
    assert await there(c) == []
    assert (await commands.retention(settings(conninfo), dry_run=False))["changed"] is False


async def test_the_command_says_where_a_worker_is_at_it(c, conninfo):
    await ingest(c, "a", 31)
    assert await maintenance.claim(c, "retention", "a worker", 60)
    with pytest.raises(commands.CommandFailed, match="a worker removes"):
        await commands.retention(settings(conninfo), dry_run=False)


async def test_what_is_too_old_is_found_by_its_index(c):
    await c.execute("SET enable_seqscan = off")
    await c.execute("SET enable_bitmapscan = off")
    await ingest(c, "a", 31)
    cursor = await c.execute(
        "EXPLAIN SELECT v.document_id" + expiry._TOO_OLD + " ORDER BY v.received_at LIMIT 9",
        {"tenant": "t", "kind": "document", "days": 30},
    )
    plan = "\n".join(row["QUERY PLAN"] for row in await cursor.fetchall())
    assert "versions_aged" in plan
    assert "Sort" not in plan


def test_its_index_is_built_beside_the_traffic_and_again_where_a_build_was_broken_off(conninfo):
    assert indexes.ensure(conninfo) == []
    with psycopg.connect(conninfo, autocommit=True) as c:
        c.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'versions_aged'::regclass")
    assert indexes.ensure(conninfo) == ["built versions_aged again: a build was broken off"]
    assert indexes.ensure(conninfo) == []
