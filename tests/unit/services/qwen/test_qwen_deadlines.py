"""Deadlines, and who is sent away rather than let wait in vain."""

import asyncio
import time

import pytest
from conftest import Answer, StartTier, Tier
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from qwen_doubles import MODEL, SAID, Engine, Pbml, serving, until
from test_qwen_flights import shared

from devmentor.common.errors import ApiError
from devmentor.qwen.pool import Pool


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def within(milliseconds: int) -> dict[str, str]:
    return {"X-DevMentor-Deadline-Ms": str(milliseconds)}


def refused(model: str, reason: str) -> float:
    labels = {"model": model, "reason": reason}
    return REGISTRY.get_sample_value("devmentor_qwen_pool_refused_total", labels) or 0.0


# -- the estimate -----------------------------------------------------------------------------------------------------


async def busy_pool(name: str, clock: Clock, *, size: int = 4, held_s: float = 8.0) -> Pool:
    """A pool whose slots were held for `held_s` until now, and are all taken again."""
    pool = Pool(name, size, 5.0, clock)
    first = [await pool.acquire() for _ in range(size)]
    clock.now += held_s
    for since in first:
        pool.release(since)
    for _ in range(size):
        await pool.acquire()
    return pool


async def test_the_wait_is_estimated_from_the_times_that_slots_were_held() -> None:
    pool = await busy_pool("estimate", Clock(), size=4, held_s=8.0)
    assert pool.expected_wait_s == pytest.approx(1 * 8 / 4)
    waiting = [asyncio.create_task(pool.acquire(100)) for _ in range(2)]
    await until(lambda: pool.waiting == 2)
    assert pool.expected_wait_s == pytest.approx(3 * 8 / 4)
    with pytest.raises(ApiError) as caught:
        async with asyncio.timeout(0.5):  # at once, not after those five seconds
            await pool.acquire(5.0)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    assert (refused("estimate", "expected"), refused("estimate", "waited")) == (1, 0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_slots_that_do_not_come_back_count_too() -> None:
    clock = Clock()
    pool = await busy_pool("stuck", clock, size=4, held_s=1.0)
    assert pool.expected_wait_s == pytest.approx(0.25)
    clock.now += 40
    assert pool.expected_wait_s == pytest.approx(10), "held for 40 s already"


async def test_with_a_free_slot_nobody_is_refused_whatever_was_measured() -> None:
    clock = Clock()
    pool = await busy_pool("free", clock, size=2, held_s=1000.0)
    pool.release(clock.now)
    assert pool.expected_wait_s == 0
    await pool.acquire(0.001)


@given(st.lists(st.tuples(st.floats(0, 50), st.booleans()), max_size=40))
async def test_slots_and_their_ages_add_up_whatever_the_order(events: list[tuple[float, bool]]) -> None:
    clock = Clock()
    pool, held = Pool("any", 3, 0.0, clock), []
    for pause, take in events:
        clock.now += pause
        if take and len(held) < 3:
            held.append(await pool.acquire())
        elif held:
            pool.release(held.pop(0))
        assert pool.in_use == len(held)
        if len(held) == 3:
            ages = [clock.now - since for since in held]
            assert pool.expected_wait_s >= sum(ages) / 9 - 1e-6
        else:
            assert pool.expected_wait_s == 0


# -- clients ----------------------------------------------------------------------------------------------------------


async def hundred_held(tier: Tier, engine: Engine) -> list["asyncio.Task[Answer]"]:
    engine.mode = "hang"
    held = [asyncio.create_task(tier.chat(f"held {number}")) for number in range(100)]
    await until(lambda: len(engine.questions) == 100)
    return held


@pytest.mark.parametrize("stream", [False, True])
async def test_the_101st_gets_429_at_its_deadline_and_never_hangs(
    start: StartTier, engine: Engine, stream: bool
) -> None:
    tier = await start(probe_s=60)
    held = await hundred_held(tier, engine)
    began = time.monotonic()
    answer = await tier.chat("one too many", stream=stream, headers=within(300))
    assert 0.25 < time.monotonic() - began < 2
    assert answer.status == 429
    assert answer.body["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) >= 1
    engine.release.set()
    assert {answer.status for answer in await asyncio.gather(*held)} == {200}
    assert len(engine.questions) == 100


async def test_the_101st_waits_within_its_deadline(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60, pool_wait_s=0.01)
    held = await hundred_held(tier, engine)
    waiting = asyncio.create_task(tier.chat("one too many", headers=within(20_000)))
    await asyncio.sleep(0.2)
    assert not waiting.done(), "its own deadline counts, not the setting"
    engine.release.set()
    assert (await waiting).text == SAID
    await asyncio.gather(*held)


async def test_who_would_wait_too_long_is_sent_away_at_once(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60, pool_size=1)
    engine.mode = "hang"
    held = asyncio.create_task(tier.chat("held"))
    await until(lambda: bool(engine.questions))
    await asyncio.sleep(0.7)
    before = refused(MODEL, "expected")
    began = time.monotonic()
    answer = await tier.chat("hurried", headers=within(500))
    assert time.monotonic() - began < 0.4
    assert (answer.status, answer.body["error"]["code"]) == (429, "engine_busy")
    assert refused(MODEL, "expected") == before + 1
    engine.release.set()
    assert (await held).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_the_engines_work(start: StartTier, engine: Engine, stream: bool) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    began = time.monotonic()
    answer = await tier.chat(stream=stream, headers=within(200))
    assert time.monotonic() - began < 2
    assert (answer.status, answer.body["error"]["code"]) == (429, "deadline_exceeded")
    assert "retry-after" in answer.headers
    await until(lambda: engine.cancelled == 1)
    engine.mode = "ok"
    assert (await tier.chat("again")).status == 200, "that was no error of the engine's"


async def test_of_a_stream_the_deadline_is_for_the_first_event(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "pause"
    asking = asyncio.create_task(tier.chat(stream=True, headers=within(200)))
    await asyncio.sleep(0.4)
    engine.release.set()
    assert (await asking).streamed_text == SAID


async def test_a_deadline_ends_nobody_elses_answer(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    before = shared()
    leader = asyncio.create_task(tier.chat(headers=within(300)))
    await until(lambda: bool(engine.questions))
    follower = asyncio.create_task(tier.chat())
    await until(lambda: shared() > before)
    assert (await leader).status == 429
    engine.release.set()
    assert (await follower).text == SAID
    assert len(engine.questions) == 1


async def test_pbml_gets_half_of_what_is_left_and_is_told(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    pbml.delay = 3.0
    answer = await grounded.chat(headers=within(3000))
    assert (answer.status, answer.context) == (200, "degraded")
    assert 500 <= int(pbml.deadlines[0] or 0) <= 1500


async def test_a_replica_is_not_left_alone_for_a_call_that_had_no_time(
    start: StartTier, pbml: Pbml, urls: dict[str, str]
) -> None:
    other = Pbml()
    async with serving(other.app) as url:
        tier = await start(pbml_urls=[urls["pbml"], url])
        pbml.delay = 1.0
        await tier.chat("hurried", headers=within(400))
        assert len(pbml.asked) == 1
        pbml.delay = 0
        await tier.chat("unhurried")
        assert len(pbml.asked) == 2


async def test_an_embedding_has_a_deadline_too(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    ask = {"model": "vectors", "input": "a"}
    answer = await tier.request("POST", "/v1/embeddings", ask, tier.headers() | within(100))
    assert (answer.status, answer.body["error"]["code"]) == (429, "deadline_exceeded")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "1" * 12])
async def test_a_deadline_that_is_none_is_refused(start: StartTier, value: str) -> None:
    tier = await start()
    answer = await tier.chat(headers={"X-DevMentor-Deadline-Ms": value})
    assert (answer.status, answer.body["error"]["param"]) == (400, "X-DevMentor-Deadline-Ms")
