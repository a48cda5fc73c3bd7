"""Writes while a real PostgreSQL 15 is away: the API in this process, and as a process that is killed."""

import asyncio
import hashlib
import json
import os
import random
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql
from spool_postgres import Api, Postgres, swallowing_commits

from devmentor.pbml import api, jobs, schema
from devmentor.pbml.commands import CommandFailed
from devmentor.pbml.settings import Settings
from devmentor.pbml.spool import commands
from devmentor.pbml.spool.writes import SpooledWrites

KEY = "a key"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
def database(postgres):
    """A database of the test's own, at the newest revision; the server runs again afterwards."""
    if not postgres.running:
        postgres.start()
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as c:
        c.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    schema.migrate(postgres.conninfo(name), "head")
    return postgres.conninfo(name)


def write_tenants(path, name: str) -> None:
    """One tenant, whose key is KEY."""
    Path(path).write_text(json.dumps([{"tenant": name, "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))


@pytest.fixture
def environment(tmp_path, database):
    tenants = tmp_path / "tenants.json"
    write_tenants(tenants, "t")
    (tmp_path / "spool").mkdir()
    return {
        "PBML_DATABASE": database,
        "PBML_TENANTS_FILE": str(tenants),
        "PBML_SPOOL_DIR": str(tmp_path / "spool"),
        "PBML_SPOOL_MIN_FREE_MIB": "0",
        "PBML_SPOOL_AFTER_S": "0.5",
        "PBML_QDRANT_URLS": "http://127.0.0.1:1",
        "PBML_EMBEDDING_URLS": "http://127.0.0.1:1",
        "PBML_REPLICA": "one",
        "PBML_DRAIN_DELAY_S": "0",
    }


def settings(environment, **more) -> Settings:
    return Settings(**{name.removeprefix("PBML_").lower(): value for name, value in environment.items()}, **more)


@asynccontextmanager
async def replica(environment, **more):
    """The API in this process, its lifespan run."""
    app = api.application(settings(environment, **more))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pbml", headers=HEADERS) as client:
            yield client


def rows(database: str, statement: str, *values) -> list[tuple]:
    with psycopg.connect(database) as c:
        return c.execute(statement, values).fetchall()


def versions(database: str) -> list[tuple]:
    """(document, version, status, text), in the order of the ledger."""
    return rows(database, "SELECT document_id, version, status, content FROM versions ORDER BY seq")


async def eventually(check, within_s: float = 20) -> None:
    until = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < until, "it did not come"
        await asyncio.sleep(0.05)


async def test_writes_during_an_outage_are_acknowledged_and_replayed_in_order(postgres, database, environment):
    async with replica(environment) as client:
        first = await client.post("/v1/documents", json={"id": "d", "text": "one"})
        assert first.json()["durability"] == "primary"
        postgres.stop()
        answers = [await client.post("/v1/documents", json={"id": "d", "text": text}) for text in ("two", "three")]
        answers += [
            await client.post("/v1/turns", json={"conversation_id": "c", "role": "user", "content": f"turn {n}"})
            for n in range(3)
        ]
        assert [a.status_code for a in answers] == [202] * 5
        assert {a.json()["durability"] for a in answers} == {"local"}
        assert all(a.json()["watermark"].startswith("spool:one:") for a in answers)
        assert answers[0].json()["version"] is None
        postgres.start()
        await eventually(lambda: len(versions(database)) == 6)
        texts = [(version, text) for document, version, _status, text in versions(database) if document == "d"]
        assert texts == [(1, "one"), (2, "two"), (3, "three")]
        assert [row[3] for row in versions(database)[-3:]] == ["turn 0", "turn 1", "turn 2"]
        assert len(rows(database, "SELECT 1 FROM procrastinate_jobs")) == 6


async def test_a_server_that_goes_away_before_the_write_has_its_job_is_an_outage_too(
    postgres, database, environment, monkeypatch
):
    defer = jobs.defer

    async def late(*arguments) -> None:
        if postgres.running:
            await asyncio.to_thread(postgres.stop, "immediate")
        await defer(*arguments)

    async with replica(environment) as client:
        monkeypatch.setattr(jobs, "defer", late)
        answer = await document(client, "one")
        assert (answer.status_code, answer.json().get("durability")) == (202, "local"), answer.text
        monkeypatch.undo()
        postgres.start()
        await eventually(lambda: [row[3] for row in versions(database)] == ["one"])
    assert rows(database, "SELECT count(*) FROM procrastinate_jobs") == [(1,)]


async def document(client, text: str, name: str = "d", key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post("/v1/documents", json={"id": name, "text": text}, headers=headers)


async def turn(client, content: str, conversation: str = "c") -> httpx.Response:
    return await client.post("/v1/turns", json={"conversation_id": conversation, "role": "user", "content": content})


async def test_an_idempotency_key_holds_in_the_spool_and_after_the_replay(postgres, database, environment):
    async with replica(environment) as client:
        postgres.stop()
        first = await document(client, "one", key="k")
        again = await document(client, "one", key="k")
        other = await document(client, "two", key="k")
        assert first.json() == again.json()
        assert again.headers["Idempotency-Replayed"] == "true"
        assert other.status_code == 422
        both = await asyncio.gather(*(document(client, "both", "e", key="l") for _ in range(8)))
        assert len({answer.json()["watermark"] for answer in both}) == 1
        postgres.start()
        await eventually(lambda: len(versions(database)) == 2)
        later = await document(client, "one", key="k")
        assert later.json() == {**first.json(), "durability": "primary"}
        assert (await document(client, "two", key="k")).status_code == 422
    assert len(versions(database)) == 2


async def test_a_key_that_postgresql_knew_before_the_outage_is_not_written_again(postgres, database, environment):
    async with replica(environment) as client:
        before = await document(client, "one", key="k")
        postgres.stop()
        spooled = await document(client, "one", key="k")
        assert spooled.json()["durability"] == "local"
        reused = await document(client, "two", key="k")
        assert reused.status_code == 422
        postgres.start()
        mark = spooled.json()["watermark"].rpartition(":")[2]
        found = "SELECT 'pg:' || seq FROM spool_entries WHERE entry_id = %s AND seq IS NOT NULL"
        await eventually(lambda: rows(database, found, mark) == [(before.json()["watermark"],)])
    assert [row[:2] for row in versions(database)] == [("d", 1)]


async def test_a_newer_version_or_deletion_stays_and_the_spooled_one_is_superseded(postgres, database, environment):
    async with replica(environment) as client:
        await document(client, "old", "replaced")
        await document(client, "old", "deleted")
        await turn(client, "said before", "gone")
        postgres.stop()
        for name in ("replaced", "deleted"):
            assert (await document(client, "spooled", name)).json()["durability"] == "local"
        assert (await turn(client, "spooled", "gone")).status_code == 202
    postgres.start()
    elsewhere = {k: v for k, v in environment.items() if k != "PBML_SPOOL_DIR"} | {"PBML_REPLICA": "two"}
    async with replica(elsewhere) as client:
        assert (await document(client, "newer", "replaced")).json()["durability"] == "primary"
        assert (await client.delete("/v1/documents/deleted")).status_code == 202
        assert (await client.delete("/v1/conversations/gone")).status_code == 202
        assert (await turn(client, "said after", "gone")).status_code == 202
    async with replica(environment) as client:
        await eventually(lambda: len(rows(database, "SELECT 1 FROM spool_entries WHERE seq IS NOT NULL")) == 6)
        status = (await client.get("/v1/documents/replaced")).json()
        assert (status["version"], status["status"]) == (2, "received")
        assert (await client.get("/v1/documents/deleted")).status_code == 404
        turns = (await client.get("/v1/conversations/gone/turns")).json()["turns"]
        assert [t["content"] for t in turns] == ["said after"]
        await document(client, "newest", "replaced")
    late = [(row[0], row[1], row[3]) for row in versions(database) if row[2] == "superseded"]
    assert sorted(late[:2]) == [("deleted", 0, None), ("replaced", 0, None)]
    assert late[2][2] is None
    assert [row[1:] for row in versions(database) if row[0] == "replaced"][-1] == (3, "received", "newest")


async def test_a_write_does_not_overtake_what_waits_and_a_deletion_says_so(
    postgres, database, environment, monkeypatch
):
    async with replica(environment) as client:
        postgres.stop()
        await document(client, "one")
        await turn(client, "one")
        together = {"documents": [{"id": "e", "text": "x"}, {"id": "d", "text": "x"}]}
        for _ in range(400):  # where a write's outcome was not known, a replay has to find out that PostgreSQL is away
            refused = await client.post("/v1/documents:batch", json=together)
            if refused.json()["error"]["code"] == "store_away":
                break
            await asyncio.sleep(0.05)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "store_away")
        assert refused.headers["Retry-After"] == "1"
        monkeypatch.setattr(SpooledWrites, "refuse_while_away", lambda _: None)  # as once it is back, before the replay
        for method, path, body, param in (
            ("DELETE", "/v1/documents/d", None, None),
            ("DELETE", "/v1/conversations/c", None, None),
            ("POST", "/v1/documents:batch", together, "documents.1.id"),
        ):
            refused = await client.request(method, path, json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (429, "spool_pending", param)
            assert refused.headers["Retry-After"] == "1"
        postgres.start()
        answers = [await document(client, f"then {n}") for n in range(200)]
        assert {a.status_code for a in answers} == {202}
        await eventually(lambda: len(versions(database)) == 202)
        # The rows are seen before the replica has heard of its commit: until then its answer is the 429 of above.
        for _ in range(400):
            deleted = await client.delete("/v1/documents/d")
            if deleted.status_code != 429:
                break
            await asyncio.sleep(0.05)
        assert deleted.status_code == 202
    texts = [text for name, _v, _s, text in versions(database) if name == "d"][:-1]
    assert texts == ["one", *(f"then {n}" for n in range(200))]


async def test_a_watermark_of_the_spool_is_reached_after_the_replay_on_every_replica(
    postgres, environment, tmp_path_factory
):
    elsewhere = environment | {"PBML_REPLICA": "two", "PBML_SPOOL_DIR": str(tmp_path_factory.mktemp("two"))}
    async with replica(environment) as one:
        postgres.stop()
        mark = (await document(one, "the sky is green")).json()["watermark"]
        ask = {"query": "sky", "token_budget": 100, "watermark": mark}
        assert (await one.post("/v1/context", json=ask)).status_code == 503
        ready = (await one.get("/ready")).json()
        assert ready["status"] == "ready"
        assert not ready["checks"]["postgres"]["ok"]
    postgres.start()
    async with replica(elsewhere) as two:
        answer = await two.post("/v1/context", json=ask)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "watermark_not_reached")
        async with replica(environment) as one:
            # Asked at once: the fetch waits for the replay.
            found = await one.post("/v1/context", json=ask)
            assert found.status_code == 200
            assert "sky is green" in found.text
        assert "sky is green" in (await two.post("/v1/context", json=ask)).text


async def test_what_can_not_be_replayed_is_set_aside_and_taken_up_by_the_command(postgres, database, environment):
    async with replica(environment) as client:
        postgres.stop()
        await document(client, "one")
    postgres.start()
    # The tenant's key was taken away meanwhile.
    write_tenants(environment["PBML_TENANTS_FILE"], "u")
    async with replica(environment):
        found = None
        while not found:
            await asyncio.sleep(0.1)
            found = (await commands.status(settings(environment)))["parked"]
        with pytest.raises(CommandFailed, match="in use"):
            await commands.replay(settings(environment))
    assert found[0]["reason"] == "tenant t has no key"
    assert found[0]["document_id"] == "d"
    line = json.loads(next(commands.export(settings(environment))))
    assert line["document"] == {"id": "d", "title": None, "text": "one", "metadata": {}}
    write_tenants(environment["PBML_TENANTS_FILE"], "t")
    assert await commands.replay(settings(environment)) == {"changed": True, "replayed": 1, "parked": 0}
    assert [row[3] for row in versions(database)] == ["one"]
    assert (await commands.status(settings(environment)))["waiting"] == 0


async def test_a_commit_whose_outcome_is_not_known_is_spooled_and_done_once(postgres, database, environment):
    """A proxy swallows the answer to COMMIT: the row is there, and nobody was told."""
    async with swallowing_commits(postgres.port) as proxy:
        through = environment | {"PBML_DATABASE": database.replace(f"port={postgres.port}", f"port={proxy.port}")}
        async with replica(through) as client:
            assert (await document(client, "zero", "warm")).json()["durability"] == "primary"
            proxy.swallow = True
            answer = await document(client, "one")
            proxy.swallow = False
            assert answer.json()["durability"] == "local"
            mark = answer.json()["watermark"].rpartition(":")[2]
            replayed = "SELECT replays > 0 FROM spool_entries WHERE entry_id = %s"
            await eventually(lambda: rows(database, replayed, mark) == [(True,)])
    assert [row[3] for row in versions(database)] == ["zero", "one"]


# More, and longer: PBML_SPOOL_SEEDS=1,2,3 PBML_SPOOL_EACH=125 pytest tests/unit/services/pbml/test_spool_outage.py
SEEDS = [int(seed) for seed in os.environ.get("PBML_SPOOL_SEEDS", "1").split(",")]
EACH = int(os.environ.get("PBML_SPOOL_EACH", "50"))
# Bounded: where a start takes ten seconds, nearly all the time is an outage, and the writes would never end.
FAULTS = max(8, EACH // 5)


@pytest.mark.parametrize("seed", SEEDS)
async def test_an_outage_with_kills_loses_nothing_and_doubles_nothing(seed, postgres, database, environment, tmp_path):
    """Writes by 12 clients; the API is killed at seeded moments, PostgreSQL is away at seeded times."""
    chance = random.Random(seed)
    process = Api(tmp_path, environment)
    process.start()
    acknowledged: dict[str, list[str]] = {}
    local = 0
    over = asyncio.Event()

    async def client_of(number: int) -> None:
        nonlocal local
        said = acknowledged.setdefault(f"c{number}", [])
        async with httpx.AsyncClient(base_url=process.url, headers=HEADERS, timeout=20) as client:
            for n in range(EACH):
                text, key = f"{number}/{n}", uuid.uuid4().hex
                body = {"conversation_id": f"c{number}", "role": "user", "content": text}
                while True:
                    try:
                        answer = await client.post("/v1/turns", json=body, headers={"Idempotency-Key": key})
                    except httpx.HTTPError:
                        await asyncio.sleep(0.05)
                        continue
                    if answer.status_code == 202:
                        break
                    assert answer.status_code == 503, answer.text
                    await asyncio.sleep(0.05)
                local += answer.json()["durability"] == "local"
                said.append(text)

    async def faults() -> None:
        for _ in range(FAULTS):
            if over.is_set():
                return
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            await asyncio.to_thread(postgres.stop, chance.choice(["immediate", "fast"]))
            for _ in range(chance.randint(0, 2)):
                await asyncio.sleep(chance.uniform(0.1, 0.8))
                process.kill()
                await asyncio.to_thread(process.start)
            await asyncio.sleep(chance.uniform(0.1, 0.5))
            await asyncio.to_thread(postgres.start)
            if chance.random() < 0.5:
                await asyncio.sleep(chance.uniform(0.0, 0.2))
                process.kill()
                await asyncio.to_thread(process.start)

    try:
        breaking = asyncio.create_task(faults())
        await asyncio.gather(*(client_of(number) for number in range(12)))
        over.set()
        await breaking
        await eventually(lambda: rows(database, "SELECT count(*) FROM versions")[0][0] >= 12 * EACH, 60)
        process.stop()
    finally:
        process.kill()
    assert local > EACH // 2, "the outages were not felt"
    found = rows(database, "SELECT conversation_id, content FROM versions ORDER BY seq")
    assert len(found) == 12 * EACH
    for conversation, said in acknowledged.items():
        assert [text for name, text in found if name == conversation] == said
    assert rows(database, "SELECT count(*) FROM procrastinate_jobs") == [(12 * EACH,)]
