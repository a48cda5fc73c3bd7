"""Writes while a real PostgreSQL 15 is away: the API in this process, and as a process that is killed."""

import asyncio
import hashlib
import json
import time
import uuid
from contextlib import asynccontextmanager

import httpx
import psycopg
import pytest
from psycopg import sql
from spool_postgres import BIN, Postgres

from devmentor.pbml import api, schema
from devmentor.pbml.settings import Settings

pytestmark = pytest.mark.skipif(not BIN.exists(), reason="PostgreSQL 15's server is not installed")

KEY = "a key"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


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


@pytest.fixture
def environment(tmp_path, database):
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps([{"tenant": "t", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
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
