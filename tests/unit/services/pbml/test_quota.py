"""What tenants store is counted and bounded, on a real PostgreSQL."""

import asyncio
import random
from functools import partial

import httpx
import private_ledger
import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg.rows import dict_row

from devmentor.pbml import quota
from devmentor.pbml.api import answers
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import removal, usage
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.usage import Usage

KEYS = {"t": "key of t", "u": "key of u"}

RECOUNT = """
    SELECT coalesce(sum(v.content_bytes), 0)::bigint AS bytes, count(*) FILTER (WHERE v.kind = 'document') AS documents,
        count(*) FILTER (WHERE v.kind = 'turn') AS turns
    FROM documents d JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id
        AND v.version = d.latest_version AND d.deleted_version < d.latest_version
    WHERE d.tenant = %s
"""


@pytest.fixture(scope="module")
def server():
    with private_ledger.prepared() as conninfo:
        yield conninfo


@pytest.fixture
def conninfo(server):
    with private_ledger.database(server, "quota", "prepared") as made:
        yield made


@pytest.fixture
async def c(conninfo):
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True, row_factory=dict_row) as made:
        yield made


@pytest.fixture
def api(conninfo, tmp_path):
    """The API with quotas, as tenant t."""
    return partial(private_ledger.api, conninfo, tmp_path / "tenants.json", KEYS)


async def ingest(client, name: str, text: str, **headers) -> httpx.Response:
    return await client.post("/v1/documents", json={"id": name, "text": text}, headers=headers)


async def say(client, text: str) -> httpx.Response:
    return await client.post("/v1/turns", json={"conversation_id": "c", "role": "user", "content": text})


async def test_a_write_over_the_quota_is_refused_and_told_what_helps(api):
    async with api(quotas={"t": {"bytes": 10}}) as client:
        assert (await ingest(client, "a", "12345678")).status_code == 202
        answer = await ingest(client, "b", "123")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "quota_exceeded")
        assert "Retry-After" not in answer.headers
        assert error["message"].startswith("quota of bytes: 8 of 10 bytes of text are used and this needs 3 more")
        assert "delete documents" in error["message"]
        assert "pbml_retention" in error["message"]
        assert (await client.get("/v1/documents/b")).status_code == 404
        assert (await say(client, "123")).status_code == 403
        assert (await ingest(client, "b", "12")).status_code == 202
        assert (await client.delete("/v1/documents/a")).status_code == 202
        assert (await ingest(client, "c", "12345678")).status_code == 202


async def test_a_replacement_counts_by_what_it_differs(api):
    async with api(quotas={"t": {"bytes": 10, "documents": 1}}) as client:
        assert (await ingest(client, "a", "12345678")).status_code == 202
        assert (await ingest(client, "a", "1234567890")).status_code == 202
        assert (await ingest(client, "a", "12345678901")).status_code == 403
        assert (await ingest(client, "b", "")).status_code == 400
        assert (await ingest(client, "b", "1")).json()["error"]["message"].startswith("quota of bytes")
    async with api(quotas={"t": {"bytes": 5, "documents": 1}}) as client:
        assert (await ingest(client, "a", "123456")).status_code == 202, "above a lowered quota, less is no harm"
        assert (await ingest(client, "a", "1234567")).status_code == 403


async def test_documents_and_turns_have_limits_of_their_own(api):
    async with api(quotas={"default": {"documents": 1, "turns": 1}}) as client:
        assert (await ingest(client, "a", "x")).status_code == 202
        assert (await ingest(client, "a", "y")).status_code == 202
        assert (await ingest(client, "b", "x")).json()["error"]["message"].startswith("quota of documents: 1 of 1")
        assert (await say(client, "x")).status_code == 202
        assert (await say(client, "x")).json()["error"]["message"].startswith("quota of turns: 1 of 1 turns are used")
        assert (await client.delete("/v1/conversations/c")).status_code == 202
        assert (await say(client, "x")).status_code == 202


async def test_an_entry_of_its_own_stands_instead_of_the_default(api):
    quotas = {"default": {"documents": 1}, "u": {}}
    async with api("u", quotas=quotas) as client:
        assert [(await ingest(client, name, "x")).status_code for name in "ab"] == [202, 202]
    async with api("t", quotas=quotas) as client:
        assert [(await ingest(client, name, "x")).status_code for name in "ab"] == [202, 403]


async def test_what_was_acknowledged_is_acknowledged_again_over_the_quota_too(api):
    async with api(quotas={"t": {"documents": 1}}) as client:
        first = await ingest(client, "a", "x", **{"Idempotency-Key": "k"})
    async with api(quotas={"t": {"documents": 1, "bytes": 1}}) as client:
        again = await ingest(client, "a", "x", **{"Idempotency-Key": "k"})
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"


async def test_a_refused_request_may_come_again_with_its_key(api):
    async with api(quotas={"t": {"documents": 1}}) as client:
        await ingest(client, "a", "x")
        assert (await ingest(client, "b", "x", **{"Idempotency-Key": "k"})).status_code == 403
        await client.delete("/v1/documents/a")
        assert (await ingest(client, "b", "x", **{"Idempotency-Key": "k"})).status_code == 202


async def test_usage_is_told(api):
    async with api(quotas={"t": {"bytes": 10}}, retention={"default": {"turns_days": 3}}) as client:
        await ingest(client, "a", "äß")
        await say(client, "x")
        found = answers.Usage.model_validate((await client.get("/v1/usage")).json())
    assert found.model_dump() == {
        "bytes": {"used": 5, "limit": 10},
        "documents": {"used": 1, "limit": None},
        "turns": {"used": 1, "limit": None},
        "retention": {"documents_days": None, "turns_days": 3},
    }


async def recount(c, tenant: str = "t") -> Usage:
    return Usage(**await (await c.execute(RECOUNT, (tenant,))).fetchone())


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_written_the_count_is_what_is_there(c, seed):
    chance = random.Random(seed)
    for number in range(150):
        name = chance.choice("abcdef")
        match chance.randrange(8):
            case 0 | 1 | 2:
                await accept_document(c, "t", name, None, {}, "x" * chance.randrange(1, 50))
            case 3 | 4:
                await accept_turn(c, "t", name, f"~turn/{name}/{number}", "user", "ö" * chance.randrange(1, 50))
            case 5 | 6:
                await accept_deletion(c, "t", name)
            case _:
                await removal.delete_turns(c, "t", name)
    assert await usage.read(c, "t") == await recount(c)
    assert (await recount(c)).documents
    await removal.delete_tenant(c, "t")
    assert await usage.read(c, "t") == Usage(0, 0, 0)
    assert await usage.read_all(c) == {"t": Usage(0, 0, 0)}


async def test_nobody_waits_for_anothers_commit(c, conninfo):
    connections = [await psycopg.AsyncConnection.connect(conninfo, row_factory=dict_row) for _ in range(5)]
    for text in ("text", "texts"):
        # All of them are open at the same moment; one that waited for another would stand still here.
        async with asyncio.timeout(10):
            for number, connection in enumerate(connections):
                await accept_document(connection, "t", f"d{number}", None, {}, text)
        for connection in connections:
            await connection.commit()
    assert await usage.read(c, "t") == await recount(c) == Usage(25, 5, 0)
    for number in range(20):
        await accept_document(c, "t", f"e{number}", None, {}, "text")
    slots = await (await c.execute("SELECT count(*) AS slots FROM usage")).fetchone()
    assert slots["slots"] == 5, "as many rows as were counted in at the same moment"
    for connection in connections:
        await connection.close()


async def test_a_limit_is_passed_by_no_more_than_is_under_way_at_once(c, conninfo):
    check = quota.QuotaCheck(Settings(tenants_file=None, quotas={"t": {"documents": 3}}).quotas)

    async def write(connection, name: str) -> None:
        await check.documents(connection, "t", {name: 1})
        await accept_document(connection, "t", name, None, {}, "x")

    await write(c, "a")
    await write(c, "b")
    connections = [await psycopg.AsyncConnection.connect(conninfo, row_factory=dict_row) for _ in range(3)]
    for number, connection in enumerate(connections):
        await write(connection, f"c{number}")
    for connection in connections:
        await connection.commit()
        with pytest.raises(Exception, match="quota of documents"):
            await write(connection, "d")
        await connection.close()
    assert (await usage.read(c, "t")).documents == 5


async def test_metrics(c):
    settings = Settings(tenants_file=None, quotas={"t": {"bytes": 100}})
    await accept_document(c, "t", "a", None, {}, "x" * 7)
    quota.measure(settings.quotas, await usage.read_all(c))
    value = REGISTRY.get_sample_value
    assert value("pbml_usage", {"tenant": "t", "limit": "bytes"}) == 7
    assert value("pbml_usage", {"tenant": "t", "limit": "documents"}) == 1
    assert value("pbml_quota", {"tenant": "t", "limit": "bytes"}) == 100
    assert value("pbml_quota", {"tenant": "t", "limit": "documents"}) is None
