"""Cached answers that an operator takes back: here, at other instances, and for good."""

import asyncio
import logging
from typing import Any

import pytest
from conftest import ADMIN, Answer, StartTier, Tier
from hypothesis import given
from hypothesis import strategies as st
from qwen_doubles import MODEL, CacheNode, Engine, until

from devmentor.qwen.cache import L1, L2, AnswerCache, Entry, Lookup
from devmentor.qwen.purge import Purges, Scope, matches, model_part

ALL = {"all": True}


async def purge(tier: Tier, body: dict[str, Any], key: str = ADMIN) -> Answer:
    return await tier.request("POST", "/v1/cache/purge", body, {"Authorization": f"Bearer {key}"})


async def test_it_removes_from_both_levels_and_the_log_says_who_what_and_how_many(
    start: StartTier, caplog: pytest.LogCaptureFixture
) -> None:
    node = CacheNode()
    async with node.serving() as address:
        tier = await start(cache_nodes=[address])
        await tier.chat()
        await tier.chat("another")
        await until(lambda: len(node.keys) == 2)
        with caplog.at_level(logging.INFO, "devmentor.audit"):
            answer = await purge(tier, {**ALL, "reason": "wrong document"})
        assert (answer.status, answer.body["purged"], answer.body["complete"]) == (200, {"l1": 2, "l2": 2}, True)
        assert node.keys == {}
        (record,) = [record for record in caplog.records if record.name == "devmentor.audit"]
        told = vars(record)
        assert (told["tenant"], told["model"], told["l1"], told["l2"]) == ("*", "*", 2, 2)
        assert told["reason"] == "wrong document"
        assert "admin key" in told["who"]
        assert ADMIN not in str(told)
        assert (await tier.chat()).cache == "miss"


async def test_a_tenants_purge_leaves_the_others_alone(start: StartTier) -> None:
    tier = await start()
    await tier.chat()
    await tier.chat(tenant="other")
    assert (await purge(tier, {"tenant": "lab"})).body["purged"]["l1"] == 1
    assert (await tier.chat(tenant="other")).cache == "hit"
    assert (await tier.chat()).cache == "miss"


async def test_a_models_purge_leaves_the_others_alone(start: StartTier, urls: dict[str, str]) -> None:
    tier = await start()
    embed = {"model": "vectors", "input": "a"}
    await tier.chat()
    await tier.request("POST", "/v1/embeddings", embed)
    assert (await purge(tier, {"model": MODEL, "tenant": "lab"})).body["purged"]["l1"] == 1
    assert (await tier.request("POST", "/v1/embeddings", embed)).cache == "hit"
    assert (await purge(tier, {"model": "vectors"})).body["purged"]["l1"] == 1


async def test_a_purged_answer_is_not_served_as_a_stale_one(start: StartTier, engine: Engine) -> None:
    tier = await start()
    await tier.chat()
    await purge(tier, ALL)
    engine.mode = "error"
    assert (await tier.chat()).status == 503


async def test_other_instances_learn_of_it(start: StartTier, engine: Engine) -> None:
    node = CacheNode()
    async with node.serving() as address:
        one = await start(cache_nodes=[address], purge_poll_s=0.05)
        other = await start(cache_nodes=[address], purge_poll_s=0.05)
        await one.chat()
        await until(lambda: bool(node.keys))
        assert (await other.chat()).served_by == "cache-l2"
        await purge(one, ALL)
        await asyncio.sleep(0.3)
        assert (await other.chat()).cache == "miss", "neither its own first level nor the second has it"


async def test_an_answer_under_way_does_not_bring_back_what_was_purged(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    before = asyncio.create_task(tier.chat())
    await until(lambda: len(engine.questions) == 1)
    await purge(tier, ALL)
    after = asyncio.create_task(tier.chat())
    await until(lambda: len(engine.questions) == 2)  # nor is it shared with who asks after the purge
    engine.release.set()
    assert (await before).status == (await after).status == 200
    assert (await tier.chat()).cache == "hit", "the one that was asked for after the purge"
    assert len(engine.questions) == 2


async def test_a_node_that_was_away_is_told_later(start: StartTier) -> None:
    node, late = CacheNode(), CacheNode()
    async with node.serving() as address, late.serving() as late_address:
        tier = await start(cache_nodes=[address, late_address], purge_poll_s=0.05)
        generation = (await purge(tier, ALL)).body["generation"]
        late.hashes.clear()  # it lost its memory
        await until(lambda: late.hashes.get(b"qwen:purges") == {b"*:*": str(generation).encode()})


async def test_with_no_node_it_says_that_only_this_instance_was_purged(start: StartTier) -> None:
    tier = await start(cache_nodes=["127.0.0.1:9"])
    await tier.chat()
    answer = await purge(tier, ALL)
    assert (answer.status, answer.body["error"]["code"]) == (503, "cache_nodes_away")
    assert (await tier.chat()).cache == "miss"


@pytest.mark.parametrize(
    "body", [{}, {"all": False}, {"all": True, "tenant": "lab"}, {"tenant": "*"}, {"tenant": 1}, {"tenants": "lab"}]
)
async def test_a_scope_that_is_none_is_refused(start: StartTier, body: dict[str, Any]) -> None:
    tier = await start()
    await tier.chat()
    assert (await purge(tier, body)).status == 400
    assert (await tier.chat()).cache == "hit"


@pytest.mark.parametrize("settings", [{}, {"admin_key_sha256": "", "trace_size": 0}])
async def test_only_the_admin_key_purges(start: StartTier, settings: dict[str, Any]) -> None:
    tier = await start(**settings)
    assert (await purge(tier, ALL, "key-of-lab")).status == 403
    assert (await purge(tier, ALL, "" if not settings else ADMIN)).status in (401, 403)


async def test_old_answers_are_not_trusted_where_purges_were_not_heard_of_for_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("devmentor.qwen.cache.time.monotonic", lambda: now)
    l2 = L2(["127.0.0.1:9"], user="u", password="p", tls=None, budget_s=0.2, keep_s=60)
    cache = AnswerCache(L1(10_000, 3600, lambda: now), l2, l2_ttl_s=86400, stale_s=604800, entry_bytes=1000)
    cache.keep("lab:m:k", "v", b"answer", "ok", 0)
    now += 3601
    assert (await cache.lookup("lab:m:k", "v")).stale is None
    monkeypatch.setattr(L2, "purges", lambda *_: asyncio.sleep(0, {}))
    await cache.learn_purges()
    assert (await cache.lookup("lab:m:k", "v")).stale is not None
    await cache.close()


async def test_a_purged_answer_does_not_overwrite_a_newer_one() -> None:
    l1 = L1(10_000, 3600)
    cache = AnswerCache(l1, None, l2_ttl_s=86400, stale_s=604800, entry_bytes=1000)
    await cache.purge(Scope())
    cache.keep("lab:m:k", "v", b"new", "ok", cache.generation)
    assert cache.keep("lab:m:k", "v", b"old", "ok", 0) is None
    hit = (await cache.lookup("lab:m:k", "v")).hit
    assert hit is not None
    assert hit.payload == b"new"
    l1.put("lab:m:k", Entry(b"old", "v", hit.stored_at))
    assert await cache.lookup("lab:m:k", "v") == Lookup()


SCOPES = st.builds(Scope, st.sampled_from([None, "lab", "other"]), st.sampled_from([None, "m", "n"]))


@given(st.lists(st.tuples(SCOPES, st.integers(1, 9))), st.integers(0, 9), st.sampled_from("mn"))
def test_an_entry_is_gone_if_a_newer_purge_covers_it(told: list[tuple[Scope, int]], born: int, model: str) -> None:
    purges, key = Purges(), f"lab:{model_part(model)}:digest"
    for scope, generation in told:
        purges.learn({scope.text: generation})
    assert purges.gone(key, born) == any(born < at and matches(scope.text, key) for scope, at in told)
    assert purges.next() > purges.latest
