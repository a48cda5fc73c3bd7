"""Write transactions on a real PostgreSQL: what becomes of one that is ended while it commits."""

import asyncio
import uuid

import psycopg
import pytest
from private_postgres import NO_FSYNC, SMALL, Postgres

from devmentor.pbml.db import Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.settings import Settings


@pytest.fixture(scope="module")
def conninfo():
    """A server on which no commit is confirmed: the standby that it waits for does not exist."""
    with Postgres({**NO_FSYNC, **SMALL, "synchronous_standby_names": "nobody"}) as server:
        yield server.conninfo("postgres")


@pytest.fixture
async def database(conninfo, tmp_path):
    tenants = tmp_path / "tenants.json"
    tenants.write_text("[]")
    database = Database(
        Settings(database=conninfo, tenants_file=tenants, qdrant_urls="http://q:1", embedding_urls="http://e:1"), "test"
    )
    await database.open()
    yield database
    await database.close()


async def sequence(connection) -> None:
    await connection.execute(f"CREATE SEQUENCE s{uuid.uuid4().hex}")


def standby_is_waited_for(conninfo: str) -> bool:
    with psycopg.connect(conninfo) as c:
        return bool(c.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchone())


async def test_a_connection_that_was_closed_while_it_was_idle_is_not_lent(database, conninfo):
    """As a pooler that restarts closes them."""

    async def backend() -> int:
        async with database.read() as connection:
            row = await (await connection.execute("SELECT pg_backend_pid() AS pid")).fetchone()
        return int(row["pid"])

    first = await backend()
    with psycopg.connect(conninfo, autocommit=True) as other:
        assert other.execute("SELECT pg_terminate_backend(%s, 5000)", (first,)).fetchone() == (True,)
    assert await backend() != first


async def test_at_its_deadline_the_outcome_is_unknown(database):
    with pytest.raises(OutcomeUnknown):
        await database.write(sequence, timeout_s=1.0)


async def test_whoever_cancels_it_is_not_told_something_else(database, conninfo):
    writing = asyncio.create_task(database.write(sequence, timeout_s=30.0))
    for _ in range(400):
        await asyncio.sleep(0.05)
        if standby_is_waited_for(conninfo):
            break
    else:
        pytest.fail("the commit never came to wait for its standby")
    writing.cancel()
    await asyncio.wait([writing], timeout=20)
    assert writing.cancelled()


TWO_RESULTS = psycopg.InternalError("received 2 results from command 'COMMIT'")
"""What psycopg says where PgBouncer drops a database while it answers a COMMIT."""


async def test_a_server_that_is_pretended_to_go_at_the_end_of_a_reading_is_away(database):
    with pytest.raises(DatabaseUnavailable, match="2 results"):
        async with database.read():
            raise TWO_RESULTS
    with pytest.raises(psycopg.errors.InternalError_):
        async with database.read():
            raise psycopg.errors.InternalError_("cache lookup failed")


async def test_a_server_that_is_pretended_to_go_in_a_commit_leaves_its_outcome_unknown(database, monkeypatch):
    async def two_results(self):
        await self.rollback()
        raise TWO_RESULTS

    async def nothing(_connection) -> None:
        pass

    monkeypatch.setattr(psycopg.AsyncConnection, "commit", two_results)
    with pytest.raises(OutcomeUnknown, match="2 results"):
        await database.write(nothing)


async def test_work_that_ends_its_own_transaction_is_not_called_committed(database):
    async def ends_it(connection) -> None:
        await connection.rollback()

    with pytest.raises(RuntimeError, match="not in a transaction"):
        await database.write(ends_it)
