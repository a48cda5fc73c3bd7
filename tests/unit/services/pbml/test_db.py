"""Write transactions on a real PostgreSQL: what becomes of one that is ended while it commits."""

import asyncio
import uuid

import psycopg
import pytest
from private_postgres import NO_FSYNC, SMALL, Postgres

from devmentor.pbml.db import Database, OutcomeUnknown
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
