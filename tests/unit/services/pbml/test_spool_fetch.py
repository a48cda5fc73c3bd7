"""Fetches with a watermark of the replica's own spool, while a real PostgreSQL 15 is stopped."""

import hashlib
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from state_world import Postgres, Replica, accept, ingest, new_ledger, say, settings

from devmentor.pbml import api
from devmentor.pbml.api import answers

KEYS = {"t": "a key", "u": "another key"}


@pytest.fixture
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
def ledger(postgres):
    return new_ledger(postgres)


@pytest.fixture
def replica(ledger, tmp_path):
    """The API of a replica with a state and a spool; `database` is where it believes PostgreSQL to be."""
    tenants = tmp_path / "tenants.json"
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    tenants.write_text(json.dumps([{"tenant": name, "key_sha256": digest} for name, digest in digests.items()]))
    (tmp_path / "spool").mkdir()

    @asynccontextmanager
    async def serve(database=ledger.conninfo, **change):
        given = {
            "tenants_file": tenants,
            "spool_dir": tmp_path / "spool",
            "spool_min_free_mib": 0,
            "spool_after_s": 0.5,
            "qdrant_urls": ["http://127.0.0.1:1"],
            "embedding_urls": ["http://127.0.0.1:1"],
            "drain_delay_s": 0,
            **change,
        }
        app = api.application(settings(database, tmp_path / "one").model_copy(update=given))
        async with app.router.lifespan_context(app):
            headers = {"Authorization": f"Bearer {KEYS['t']}"}
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://pbml", headers=headers) as client:
                yield client

    return serve


async def document(client, name: str, text: str) -> str:
    answer = await client.post("/v1/documents", json={"id": name, "text": text})
    assert (answer.status_code, answer.json()["durability"]) == (202, "local"), answer.text
    return answer.json()["watermark"]


async def turn(client, text: str) -> str:
    body = {"conversation_id": "c", "role": "user", "content": text}
    answer = await client.post("/v1/turns", json=body)
    assert (answer.status_code, answer.json()["durability"]) == (202, "local"), answer.text
    return answer.json()["watermark"]


async def ask(client, query: str, mark: str, key: str = "t", **more) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEYS[key]}"}
    body = {"query": query, "token_budget": 1000, "watermark": mark, **more}
    return await client.post("/v1/context", json=body, headers=headers)


def texts(answer: httpx.Response) -> dict[str, tuple[int, str]]:
    assert answer.status_code == 200, answer.text
    answers.Found.model_validate(answer.json())
    return {chunk["document_id"]: (chunk["version"], chunk["text"]) for chunk in answer.json()["chunks"]}


async def test_a_reader_sees_what_it_spooled_over_what_the_state_has(postgres, ledger, tmp_path, replica):
    await ledger.do(ingest, "apples", "Apples are red.")
    await ledger.do(ingest, "cars", "Cars and apples.")
    await ledger.do(accept, "waiting", "Apples that are not indexed.")
    await ledger.do(say, "c", "1", "I like apples")
    async with Replica(ledger.conninfo, tmp_path / "one") as one, replica() as client:
        await one.settle()
        postgres.stop()
        first = await document(client, "apples", "Apples are green.")
        said = await turn(client, "I do not like apples")
        later = await document(client, "new", "New apples.")

        found = await ask(client, "apples", later, conversation_id="c")
        shown = texts(found)
        assert shown["apples"] == (0, "Apples are green."), "the version that the state has is replaced"
        assert shown["new"] == (0, "New apples.")
        assert shown["cars"] == (1, "Cars and apples.")
        assert shown["waiting"] == (1, "Apples that are not indexed.")
        body = found.json()
        assert [one["content"] for one in body["turns"]] == ["I like apples", "I do not like apples"]
        assert body["missing"] == {"failed": 0, "unindexed": 0}
        assert "postgres" in body["degraded_parts"]

        before = await ask(client, "apples", first)
        assert "new" not in texts(before), "it was acknowledged after the watermark"
        assert before.json()["turns"] == []
        assert before.json()["context_version"] != body["context_version"]
        narrow = await ask(client, "apples", later, filters={"document_ids": ["cars"]})
        assert set(texts(narrow)) == {"cars"}
        assert texts(await ask(client, "apples", said, conversation_id="c"))["apples"][1] == "Apples are green."


async def test_another_watermark_names_its_replica_or_tenant(postgres, ledger, tmp_path, replica):
    await ledger.do(ingest, "apples", "Apples are red.")
    async with Replica(ledger.conninfo, tmp_path / "one") as one, replica() as client:
        await one.settle()
        postgres.stop()
        mine = await document(client, "apples", "Apples are green.")
        for mark, key in ((f"spool:two:{'0' * 32}", "t"), (mine, "u")):
            answer = await ask(client, "apples", mark, key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "watermark_not_reached"), answer.text
            assert f"replica {mark.split(':')[1]}:" in answer.json()["error"]["message"]


async def test_what_may_be_older_than_the_state_hides_nothing(postgres, ledger, tmp_path, replica):
    """The API lost its way to PostgreSQL, the worker beside it follows on."""
    nowhere = "host=127.0.0.1 port=1 dbname=none user=pbml connect_timeout=2"
    async with Replica(ledger.conninfo, tmp_path / "one") as one, replica(nowhere) as client:
        await one.settle()
        mark = await document(client, "apples", "Apples are green.")
        await ledger.do(ingest, "apples", "Apples are red.")
        await one.settle()
        answer = await ask(client, "apples", mark)
    assert sorted(chunk["text"] for chunk in answer.json()["chunks"]) == ["Apples are green.", "Apples are red."]


async def test_what_is_more_than_a_fetch_reads_is_said_to_be_missing(postgres, ledger, tmp_path, replica):
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        async with replica(fetch_pending_documents=2, fetch_turns=1) as client:
            postgres.stop()
            for number in range(5):
                mark = await document(client, f"d{number}", f"Apples, lot {number}.")
            found = await ask(client, "apples", mark)
    assert set(texts(found)) == {"d3", "d4"}
    assert found.json()["missing"] == {"failed": 0, "unindexed": 3}
