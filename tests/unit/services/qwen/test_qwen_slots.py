"""The engine's slots: who waits, who is refused, who leaves, and what a waiting client hears."""

import asyncio

import pytest
from conftest import Answer, StartTier, Tier
from qwen_doubles import SAID, Engine, until


async def test_one_request_too_many_waits_and_then_gets_429(start: StartTier, engine: Engine) -> None:
    tier = await start(pool_size=2, pool_wait_s=0.2, probe_s=60)
    engine.mode = "hang"
    held = [asyncio.create_task(tier.chat(str(n))) for n in range(2)]
    await until(lambda: len(engine.questions) == 2)
    refused = await tier.chat("third")
    assert refused.status == 429
    assert refused.body["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    waiting = asyncio.create_task(tier.chat("fourth"))
    await asyncio.sleep(0.05)
    engine.release.set()
    assert [answer.status for answer in await asyncio.gather(*held, waiting)] == [200, 200, 200]


@pytest.mark.parametrize(("mode", "stream"), [("hang", False), ("hang", True), ("pause", True)])
async def test_a_client_that_leaves_ends_the_engines_work_and_frees_its_slot(
    start: StartTier, engine: Engine, mode: str, stream: bool
) -> None:
    tier = await start(pool_size=1, pool_wait_s=0.1, probe_s=60)
    engine.mode = mode
    asking = asyncio.create_task(tier.chat("leaving", stream=stream))
    await until(lambda: bool(engine.questions))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: engine.cancelled == 1)
    engine.mode = "ok"
    assert (await tier.chat("next")).status == 200


async def released_late(tier: Tier, engine: Engine, mode: str) -> Answer:
    """The answer to a streamed question that the engine holds back for 0.3 s."""
    engine.mode = mode
    asking = asyncio.create_task(tier.chat(stream=True))
    await asyncio.sleep(0.3)
    engine.release.set()
    return await asking


async def test_silence_is_filled_with_comments(start: StartTier, engine: Engine) -> None:
    answer = await released_late(await start(ping_s=0.05), engine, "pause")
    assert answer.raw.count(b": ping\n\n") >= 2
    assert answer.streamed_text == SAID


async def test_a_late_first_token_finds_the_client_waiting_with_headers(start: StartTier, engine: Engine) -> None:
    answer = await released_late(await start(ping_s=0.05), engine, "hang")
    assert answer.served_by == "pending"
    assert b": served-by=engine cache=miss context=none\n\n" in answer.raw
    assert answer.streamed_text == SAID


async def test_an_error_after_the_headers_is_an_event(start: StartTier, engine: Engine) -> None:
    tier = await start(ping_s=0.05, silence_s=0.2)
    engine.mode = "hang"
    answer = await tier.chat(stream=True)
    assert b'"code":"engine_unavailable"' in answer.raw
