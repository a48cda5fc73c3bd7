"""The cache's second level, which instances share."""

import asyncio
from pathlib import Path

import pytest
from conftest import StartTier
from qwen_doubles import SAID, CacheNode, Engine

from devmentor.common import tls
from devmentor.qwen.cache import L2, Entry
from tests.unit.services.authority import Authority


async def test_another_instance_finds_the_answer_in_the_second_level(start: StartTier, engine: Engine) -> None:
    node = CacheNode()
    async with node.serving() as address:
        one, other = await start(cache_nodes=[address]), await start(cache_nodes=[address])
        await one.chat()
        await one.settle()
        answer = await other.chat()
        assert (answer.served_by, answer.text) == ("cache-l2", SAID)
        assert (await other.chat()).served_by == "cache-l1"
        assert next(iter(node.expiries.values())) == 7 * 24 * 3600
        assert next(iter(node.keys)).startswith(b"qwen:lab:")
    assert len(engine.questions) == 1


async def test_a_slow_node_costs_its_budget_and_no_answer(start: StartTier) -> None:
    node = CacheNode()
    async with node.serving() as address:
        tier = await start(cache_nodes=[address], cache_budget_s=0.05)
        node.delay = 5.0
        began = asyncio.get_running_loop().time()
        answer = await tier.chat()
        assert (answer.status, answer.served_by) == (200, "engine")
        assert asyncio.get_running_loop().time() - began < 4


async def test_a_dead_node_is_left_alone_and_the_others_keep_working(start: StartTier) -> None:
    node = CacheNode()
    async with node.serving() as address:
        tier = await start(cache_nodes=["127.0.0.1:9", address])
        for number in range(8):
            assert (await tier.chat(str(number))).status == 200
        await tier.settle()
        assert len(node.keys) == 8, "the dead node's keys moved to the living one"


@pytest.mark.parametrize("issuer", ["ours", "system"])
async def test_a_node_is_trusted_by_our_ca_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, issuer: str) -> None:
    ours, system = Authority(tmp_path, "ours"), Authority(tmp_path, "system")
    monkeypatch.setenv("SSL_CERT_FILE", str(system.path))
    client = ours.issue("client")
    server = {"ours": ours, "system": system}[issuer].issue("server")
    node = CacheNode()
    async with node.serving(tls.server_context(*server, ours.path)) as address:
        l2 = L2([address], user="u", password="p", tls=tls.client_context(ours.path, *client), budget_s=2, keep_s=60)
        await l2.connect()
        await l2.put("k", Entry(b"answer", "v", 0.0))
        assert bool(node.keys) is (issuer == "ours")
        await l2.close()


async def test_a_new_connection_to_a_node_shows_the_renewed_certificate(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    client = ours.issue("client")
    node = CacheNode()
    async with node.serving(tls.server_context(*ours.issue("server"), ours.path)) as address:
        l2 = L2([address], user="u", password="p", tls=tls.client_context(ours.path, *client), budget_s=2, keep_s=60)
        await l2.connect()
        ours.issue("client")
        tls.reload()
        node.delay = 0.1
        await asyncio.gather(l2.get("a"), l2.get("b"))  # the second finds the first connection taken
        assert len(node.certificates) == len(set(node.certificates)) == 2
        await l2.close()
