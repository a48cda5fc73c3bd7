"""What was stored before the release that counts, on a real PostgreSQL while the former release goes on writing."""

import private_ledger
import psycopg
import pytest
from psycopg.rows import dict_row
from test_quota import api, recount, server  # noqa: F401 # fixtures

from devmentor.pbml import counting, schema
from devmentor.pbml.store import usage
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.usage import Usage

BEFORE = "0005"


@pytest.fixture
def conninfo(server):  # noqa: F811
    """A database of the release before."""
    with private_ledger.database(server, "counting") as made:
        schema.migrate(made, BEFORE)
        yield made


@pytest.fixture
async def c(conninfo):
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True, row_factory=dict_row) as made:
        yield made


async def fill(c) -> None:
    for tenant in ("t", "u"):
        for name in "abcde":
            await accept_document(c, tenant, name, None, {}, f"text of {name}")
        await accept_document(c, tenant, "b", None, {}, "another text")
        await accept_deletion(c, tenant, "c")
        await accept_turn(c, tenant, "x", "~turn/x/1", "user", "hello")


async def test_what_was_there_is_counted_once_whoever_writes_meanwhile(c, conninfo, monkeypatch):
    monkeypatch.setattr(counting, "PAGE", 3)
    await fill(c)
    schema.migrate(conninfo, "0008")
    # The former release knows of no count; it replaces, deletes and adds, before and between the pages.
    await accept_document(c, "t", "a", None, {}, "replaced")
    await accept_document(c, "t", "c", None, {}, "there again")
    with psycopg.connect(conninfo, autocommit=True, row_factory=dict_row) as connection:
        assert counting._count_page(connection) == 3
    await accept_document(c, "t", "b", None, {}, "of a page that was counted")
    await accept_deletion(c, "u", "a")
    await accept_document(c, "a first tenant", "a", None, {}, "behind the page")
    assert await usage.read(c, "t") is None
    (said,) = counting.count_usage(conninfo)
    assert said == "counted 9 documents and turns"
    for tenant in ("t", "u", "a first tenant"):
        assert await usage.read(c, tenant) == await recount(c, tenant)
    assert (await recount(c)).turns == 1
    assert counting.count_usage(conninfo) == [], "a second run finds nothing to do"


async def test_while_it_is_not_known_a_tenant_with_a_quota_stores_nothing_more(c, conninfo, api):  # noqa: F811
    await fill(c)
    schema.migrate(conninfo, "0008")
    async with api(quotas={"t": {"documents": 100}}) as client:
        answer = await client.post("/v1/documents", json={"id": "f", "text": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "usage_unknown")
        assert (await client.get("/v1/usage")).status_code == 503
        counting.count_usage(conninfo)
        assert (await client.post("/v1/documents", json={"id": "f", "text": "x"})).status_code == 202
    async with api("u", quotas={"t": {"documents": 100}}) as client:
        assert (await client.post("/v1/documents", json={"id": "f", "text": "x"})).status_code == 202


async def test_back_and_forth(c, conninfo):
    await fill(c)
    schema.migrate(conninfo, "0008")
    counting.count_usage(conninfo)
    schema.migrate(conninfo, BEFORE)
    await accept_document(c, "t", "not counted", None, {}, "text")
    schema.migrate(conninfo, "0008")
    counting.count_usage(conninfo)
    assert await usage.read(c, "t") == await recount(c)


async def test_an_empty_ledger_is_counted_from_the_beginning(c, conninfo):
    schema.migrate(conninfo, "0008")
    assert await usage.read(c, "t") == Usage(0, 0, 0)
    assert counting.count_usage(conninfo) == []


def test_without_its_table_it_says_what_to_do(conninfo):
    with pytest.raises(schema.MigrationFailed, match="run migrate"):
        counting.count_usage(conninfo)
