"""Purges of what is kept by meaning, with Qdrant pretended in memory: it outlives the nodes that remember purges."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from conftest import ADMIN, Answer, StartTier, Tier
from hypothesis import given
from hypothesis import strategies as st
from qwen_doubles import MODEL, CacheNode, Engine, serving, until
from semantic_doubles import Points, Words

from devmentor.qwen.purge import Purges, Scope, matches, model_part

PURGES, SINCE = b"qwen:purges", b"-:-"
POLL_S = 0.02
BeginTier = Callable[..., Awaitable[Tier]]


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    kept = Points()
    monkeypatch.setattr("devmentor.qwen.semantic_store.SemanticStore", lambda _settings: kept)
    return kept


@pytest_asyncio.fixture
async def node() -> AsyncIterator[CacheNode]:
    yield CacheNode()


@pytest_asyncio.fixture
async def begin(start: StartTier, points: Points, urls: dict[str, str]) -> AsyncIterator[BeginTier]:
    """Starts instances that share Qdrant's points; the exact cache keeps nothing in the process."""
    async with serving(Words().app) as url:

        async def instance(*nodes: str, **more: Any) -> Tier:
            engine = {"url": urls["engine"]}
            given = {
                "models": {MODEL: engine, "other": engine, "words": {"url": url, "kind": "embedding"}},
                "cache_nodes": list(nodes),
                "cache_budget_s": 0.5,
                "cache_l1_bytes": 0,
                "semantic_model": "words",
                "qdrant_urls": ["http://127.0.0.1:1"],
                "semantic_budget_s": 2.0,
                "semantic_threshold": 0.8,
                "purge_poll_s": POLL_S,
                "probe_s": 60,
            }
            return await start(**given | more)

        yield instance


async def purge(tier: Tier, **scope: Any) -> Answer:
    return await tier.request("POST", "/v1/cache/purge", scope, {"Authorization": f"Bearer {ADMIN}"})


async def remembers(node: CacheNode) -> None:
    await until(lambda: SINCE in node.hashes.get(PURGES, {}))
    await asyncio.sleep(3 * POLL_S)  # until every instance has heard


async def ask(tier: Tier, word: str = "", **more: Any) -> str:
    """What served it. A word more makes another question of the same meaning."""
    return (await tier.chat(f"where is the old harbour {word}", **more)).served_by


async def keep(tier: Tier, points: Points, **more: Any) -> None:
    before = len(points.kept)
    assert await ask(tier, **more) == "engine"
    await until(lambda: len(points.kept) > before)


async def test_a_purge_takes_back_what_was_kept_and_says_how_many(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        await keep(tier, points)
        assert await ask(tier, "please") == "cache-semantic"
        done = await purge(tier, all=True)
        assert (done.status, done.body["purged"]["semantic"], done.body["complete"]) == (200, 1, True)
        assert points.kept == []
        assert await ask(tier, "please") == "engine"


async def test_a_purge_leaves_other_tenants_and_models_alone(begin: BeginTier, points: Points, node: CacheNode) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        for more in ({}, {"tenant": "other"}, {"model": "other"}):
            await keep(tier, points, **more)
        assert (await purge(tier, tenant="lab", model=MODEL)).body["purged"]["semantic"] == 1
        assert await ask(tier, "a", tenant="other") == "cache-semantic"
        assert await ask(tier, "b", model="other") == "cache-semantic"
        assert await ask(tier, "c") == "engine"
        await until(lambda: len(points.kept) == 3)
        assert (await purge(tier, model="other")).body["purged"]["semantic"] == 1
        assert await ask(tier, "d", tenant="other") == "cache-semantic"
        assert await ask(tier, "e") == "cache-semantic", "of after the first purge and before the second one"


async def test_a_purge_lasts_where_the_nodes_lost_their_memory_and_the_instance_was_started_anew(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        await keep(tier, points)
        purged = points.kept[0]
        assert (await purge(tier, tenant="lab")).status == 200
        points.kept.append(purged)  # a peer of Qdrant was behind, or another instance late
    lost = CacheNode()
    async with lost.serving() as address:
        tier = await begin(address)
        assert await ask(tier, "please") == "engine"
        await remembers(lost)
        assert purged not in points.kept, "nobody knows what was purged, so everything went"
        assert await ask(tier) == "engine"
        await until(lambda: len(points.kept) == 1)
        assert await ask(tier, "now") == "cache-semantic"


async def test_it_is_neither_read_nor_written_while_no_node_was_heard(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        await keep(tier, points)
    searched, kept = points.searched, list(points.kept)
    tier = await begin("127.0.0.1:9")
    for word in ("please", "now"):
        assert await ask(tier, word) == "engine"
    await asyncio.sleep(5 * POLL_S)
    assert (points.searched, points.kept) == (searched, kept)


async def test_one_node_that_is_away_hides_nothing(begin: BeginTier, points: Points, node: CacheNode) -> None:
    async with node.serving() as address:
        tier = await begin("127.0.0.1:9", address)
        await remembers(node)
        await keep(tier, points)
        assert await ask(tier, "please") == "cache-semantic"


async def test_who_remembers_tells_a_node_that_does_not_and_nothing_is_lost(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        await keep(tier, points)
        await purge(tier, tenant="other")
        memory = dict(node.hashes[PURGES])
        node.hashes.clear()
        await begin(address)
        await remembers(node)
        assert node.hashes[PURGES] == memory
        assert await ask(tier, "please") == "cache-semantic"


async def test_it_does_not_begin_anew_while_qdrant_cannot_forget(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    points.down = True
    async with node.serving() as address:
        tier = await begin(address)
        await asyncio.sleep(10 * POLL_S)
        assert SINCE not in node.hashes.get(PURGES, {})
        assert await ask(tier) == "engine"
        assert (points.searched, points.kept) == (0, [])
        points.down = False
        await remembers(node)


async def test_without_qdrant_a_purge_says_what_holds_and_is_carried_out_later(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        await keep(tier, points)
        points.down = True
        done = await purge(tier, all=True)
        assert (done.status, done.body["error"]["code"]) == (503, "semantic_cache_away")
        assert "send it again" in done.body["error"]["message"]
        points.down = False
        assert await ask(tier, "please") == "engine", "the generation guards it"
        await until(lambda: points.questions == ["where is the old harbour please"])


async def test_without_valkey_a_purge_still_deletes_and_says_who_has_not_heard(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        await keep(tier, points)
    done = await purge(tier, all=True)
    assert (done.status, done.body["error"]["code"]) == (503, "cache_nodes_away")
    assert "this instance and in Qdrant" in done.body["error"]["message"]
    assert points.kept == []
    points.down = True
    done = await purge(tier, all=True)
    assert (done.status, done.body["error"]["code"]) == (503, "cache_nodes_away")
    assert "this instance alone" in done.body["error"]["message"]


async def test_an_answer_under_way_during_the_purge_is_not_kept(
    begin: BeginTier, points: Points, node: CacheNode, engine: Engine
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        engine.mode = "hang"
        before = asyncio.create_task(ask(tier))
        await until(lambda: len(engine.questions) == 1)
        await purge(tier, all=True)
        engine.release.set()
        assert await before == "engine"
        await tier.settle()
        assert points.kept == []


@pytest.mark.parametrize("moment", ["before_put", "after_put"])
async def test_an_answer_on_its_way_to_qdrant_during_the_purge_does_not_stay(
    begin: BeginTier, points: Points, node: CacheNode, moment: str
) -> None:
    async with node.serving() as address:
        tier = await begin(address)
        await remembers(node)
        status = []

        async def meanwhile() -> None:
            status.append((await purge(tier, all=True)).status)

        setattr(points, moment, meanwhile)
        await ask(tier)
        await until(lambda: bool(status))
        await tier.settle()
        assert (status, points.kept) == ([200], [])


async def test_what_another_instance_keeps_before_it_has_heard_is_deleted_when_it_has(
    begin: BeginTier, points: Points, node: CacheNode
) -> None:
    async with node.serving() as address:
        one = await begin(address)
        await remembers(node)
        other = await begin(address, purge_poll_s=0.5)
        await purge(one, all=True)
        await keep(other, points)
        assert await ask(one, "please") == "engine", "who has heard does not serve it"
        await until(lambda: "where is the old harbour" not in points.questions)
        assert points.questions == ["where is the old harbour please"]


SCOPES = st.builds(Scope, st.sampled_from([None, "lab", "other"]), st.sampled_from([None, "m", "n"]))


@given(st.lists(st.tuples(SCOPES, st.integers(1, 9))), st.none() | st.integers(1, 9), st.sampled_from("mn"))
def test_the_floor_is_the_latest_purge_that_covers_a_key_and_unknown_where_some_may_be_forgotten(
    told: list[tuple[Scope, int]], since: int | None, model: str
) -> None:
    purges, key = Purges(), f"lab:{model_part(model)}:digest"
    for scope, generation in told:
        assert purges.learn({scope.text: generation}) in ([scope.text], [])
    if since is None:
        assert purges.floor(key) is None
        return
    purges.begin(since)
    assert purges.floor(key) == max([since, *(at for scope, at in told if matches(scope.text, key))])
    assert purges.latest >= (purges.floor(key) or 0), "what is asked from now on is kept"
