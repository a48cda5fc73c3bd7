"""A replica is stopped as systemd does it while QWEN's client asks: two real processes, a real PostgreSQL.

Embeddings and Qdrant are away: fetches answer by words, which is enough to tell an answer from none.
"""

import asyncio
import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import aiohttp
import pytest
from private_ledger import database, prepared
from spool_postgres import Api

from devmentor.common import context
from devmentor.pbml import client
from devmentor.qwen.pbml import Caller, Pbml, PbmlUnavailableError

KEY = "a key"
CALLER = Caller("t", f"Bearer {KEY}")
CONVERSATIONS = 8


@pytest.fixture(scope="module")
def postgres():
    with prepared() as conninfo:
        yield conninfo


@pytest.fixture
def replicas(tmp_path, postgres):
    """Two of them, started."""
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps([{"tenant": "t", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
    with database(postgres, "stopped", "prepared") as conninfo:
        made = []
        for name in ("one", "two"):
            environment = {
                "PBML_DATABASE": conninfo,
                "PBML_TENANTS_FILE": str(tenants),
                "PBML_QDRANT_URLS": "http://127.0.0.1:1",
                "PBML_EMBEDDING_URLS": "http://127.0.0.1:1",
                "PBML_FETCH_TIMEOUT_S": "0.2",
                "PBML_REPLICA": name,
                "PBML_DRAIN_DELAY_S": "0.5",
            }
            made.append(Api(tmp_path, environment))
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(Api.start, made))
            yield made
        finally:
            for replica in made:
                replica.stop()


class Load:
    """Conversations that fetch and write one turn after the other until they are told to stop."""

    def __init__(self, pbml: Pbml) -> None:
        self._pbml = pbml
        self.ended = asyncio.Event()
        self.failed: Counter[str] = Counter()
        self.written: dict[str, list[str]] = {}
        self.fetched = 0

    async def talk(self, conversation: str) -> None:
        said = self.written[conversation] = []
        while not self.ended.is_set():
            turn = f"{conversation} says {len(said)}"
            context.request_id.set(f"request-{turn.replace(' ', '-')}")
            try:
                await self._pbml.context(
                    CALLER, "who said what?", conversation=conversation, watermark=None, token_budget=500
                )
                self.fetched += 1
            except PbmlUnavailableError as error:
                self.failed[f"context: {error}"] += 1
            try:
                await self._pbml.add_turn(CALLER, conversation, "user", turn, f"key of {turn}")
                said.append(turn)
            except PbmlUnavailableError as error:
                self.failed[f"turn: {error}"] += 1

    async def reach(self, fetches: int) -> None:
        """Until so many more fetches were answered."""
        wanted = self.fetched + fetches
        async with asyncio.timeout(120):
            while self.fetched < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_no_fetch_fails_and_no_turn_is_lost_or_doubled_while_replicas_stop_in_turn(replicas):
    one, two = replicas
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)))
        load = Load(Pbml([one.url, two.url], session, deadline_s=30, version_s=0))
        talks = [asyncio.create_task(load.talk(f"c{number}")) for number in range(CONVERSATIONS)]
        await load.reach(40)
        await asyncio.to_thread(one.stop)
        await load.reach(20)
        await asyncio.to_thread(one.start)
        await load.reach(20)
        await asyncio.to_thread(two.stop)
        await load.reach(20)
        load.ended.set()
        await asyncio.gather(*talks)
        assert load.failed == {}
        api = await stack.enter_async_context(client.Client([one.url], KEY))
        for conversation, said in load.written.items():
            assert [turn["content"] async for turn in api.turns(conversation)] == said
    assert sum(len(said) for said in load.written.values()) > 100
