"""Fetches from the local state while a real PostgreSQL 15 is stopped, and Qdrant and the embedder are not there."""

import asyncio
import hashlib
import json
import time
from contextlib import asynccontextmanager

import httpx
import psycopg
import pytest
from state_world import Postgres, Replica, accept, delete, ingest, new_ledger, say, settings, vector_of

from devmentor.pbml import api
from devmentor.pbml.api import answers
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.store import pins

KEY = "a key"
AWAY = {"qdrant_urls": "http://127.0.0.1:1", "embedding_urls": "http://127.0.0.1:1", "drain_delay_s": 0}


@pytest.fixture
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
def ledger(postgres):
    return new_ledger(postgres)


@asynccontextmanager
async def served(ledger, tmp_path, directory, embedder=None, index=None):
    """The API of a replica whose state is in `directory`."""
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps([{"tenant": "t", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
    made = settings(ledger.conninfo, directory, **AWAY).model_copy(update={"tenants_file": tenants})
    app = api.application(made)
    async with app.router.lifespan_context(app):
        headers = {"Authorization": f"Bearer {KEY}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pbml", headers=headers) as client:
            yield client


async def ask(client, query: str, **more) -> httpx.Response:
    return await client.post("/v1/context", json={"query": query, "token_budget": 1000, **more})


def shown(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    answers.Found.model_validate(answer.json())
    return [chunk["document_id"] for chunk in answer.json()["chunks"]]


async def test_a_fetch_is_answered_while_postgresql_is_stopped(postgres, ledger, tmp_path):
    await ledger.do(ingest, "apples", "A text about apples and pears.")
    await ledger.do(ingest, "cars", "A text about cars.")
    await ledger.do(ingest, "theirs", "Another tenant's apples.", tenant="u")
    await ledger.do(ingest, "gone", "Deleted apples.")
    await ledger.do(delete, "gone")
    await ledger.do(say, "c", "1", "I like apples")
    await ledger.do(pins.put, "t", "", "name", "The user is Ada", 9)
    waiting = await ledger.do(accept, "new", "apples that are not indexed yet")
    async with Replica(ledger.conninfo, tmp_path / "one") as one, served(ledger, tmp_path, tmp_path / "one") as client:
        await one.settle()
        with psycopg.connect(ledger.conninfo) as c:
            mark = f"pg:{c.execute('SELECT max(seq) FROM versions').fetchone()[0]}"
        assert waiting.version == 1
        postgres.stop()
        answer = await ask(client, "apples", conversation_id="c", watermark=mark)
        assert shown(answer) == ["~pin/name", "apples", "new"]
        body = answer.json()
        assert body["turns"] == [{"role": "user", "content": "I like apples"}]
        assert body["degraded_parts"] == ["embedder", "postgres"]
        assert body["context_version"].endswith(".degraded")
        assert body["missing"] == {"failed": 0, "unindexed": 0}
        began = time.monotonic()
        again = await ask(client, "apples")
        assert time.monotonic() - began < 1.9, "it does not wait for PostgreSQL once more"
        assert shown(again) == ["~pin/name", "apples"]
        assert again.json()["missing"] == {"failed": 0, "unindexed": 1}
        assert shown(await ask(client, "apples", filters={"document_ids": ["cars"]})) == ["~pin/name"]


async def test_a_watermark_that_the_state_has_not_come_to_is_said(postgres, ledger, tmp_path):
    await ledger.do(ingest, "a", "apples")
    async with Replica(ledger.conninfo, tmp_path / "one") as one, served(ledger, tmp_path, tmp_path / "one") as client:
        await one.settle()
        await ledger.do(accept, "b", "more apples")
        with psycopg.connect(ledger.conninfo) as c:
            mark = f"pg:{c.execute('SELECT max(seq) FROM versions').fetchone()[0]}"
        postgres.stop()
        answer = await ask(client, "apples", watermark=mark)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "watermark_not_reached")
        assert shown(await ask(client, "apples")) == ["a"]
        postgres.start()
        assert shown(await ask(client, "apples", watermark=mark)) == ["a", "b"], "PostgreSQL has it"
        postgres.stop()


async def test_without_a_state_that_is_loaded_it_is_a_503(postgres, ledger, tmp_path):
    (tmp_path / "one").mkdir()
    async with served(ledger, tmp_path, tmp_path / "one") as client:
        assert (await client.get("/v1/digest")).status_code == 503
        postgres.stop()
        answer = await ask(client, "apples")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
        assert (await client.get("/ready")).status_code == 503


async def test_ready_needs_postgresql_or_the_state(postgres, ledger, tmp_path):
    await ledger.do(ingest, "a", "apples")
    async with Replica(ledger.conninfo, tmp_path / "one") as one, served(ledger, tmp_path, tmp_path / "one") as client:
        await one.settle()
        postgres.stop()
        answer = await client.get("/ready")
        assert answer.status_code == 200, answer.text


async def test_the_digests_of_two_replicas_are_soon_equal(ledger, tmp_path):
    async with (
        Replica(ledger.conninfo, tmp_path / "one", state_poll_s=0.2) as one,
        Replica(ledger.conninfo, tmp_path / "two", state_poll_s=0.2, replica="two") as two,
        served(ledger, tmp_path, tmp_path / "one") as first,
        served(ledger, tmp_path, tmp_path / "two") as second,
    ):
        running = [asyncio.create_task(r.follower.run()) for r in (one, two)]
        for number in range(20):
            await ledger.do(ingest, f"d{number}", f"text {number}")
        live_at = time.monotonic()
        while True:
            answer = [await client.get("/v1/digest") for client in (first, second)]
            said = [answers.StateDigest.model_validate(a.json()) for a in answer if a.status_code == 200]
            if [s.documents for s in said] == [20, 20] and said[0].position == said[1].position is not None:
                break
            assert time.monotonic() - live_at < 20, said  # seconds on a busy machine; the bench measures
            await asyncio.sleep(0.05)
        assert said[0].digest == said[1].digest
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_vectors_of_the_state_stand_in_for_qdrant(postgres, ledger, tmp_path, monkeypatch):
    await ledger.do(ingest, "a", "one thing")
    await ledger.do(ingest, "b", "quite another")
    await ledger.do(ingest, "theirs", "one thing", tenant="u")

    async def embed(_self, texts):
        return [vector_of("one thing") for _ in texts]

    async def search(*_any, **_how):
        raise IndexUnavailable("no peer")

    monkeypatch.setattr("devmentor.pbml.embedder.Embedder.embed", embed)
    monkeypatch.setattr("devmentor.pbml.index.Index.search", search)
    async with Replica(ledger.conninfo, tmp_path / "one") as one, served(ledger, tmp_path, tmp_path / "one") as client:
        await one.settle()
        for parts in (["index"], ["index", "postgres"]):
            answer = await ask(client, "no such word")
            assert shown(answer)[0] == "a"
            assert answer.json()["chunks"][0]["scores"]["index"] > 0.999
            assert answer.json()["degraded_parts"] == parts
            if postgres.running:
                postgres.stop()
