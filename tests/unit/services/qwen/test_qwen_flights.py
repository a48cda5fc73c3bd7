"""Equal questions at once: one generation, an answer for everybody."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from conftest import Answer, StartTier, Tier
from qwen_doubles import MODEL, SAID, CacheNode, Engine, Pbml, serving, until

from devmentor.qwen import metrics
from devmentor.qwen.answers import Served, Whole
from devmentor.qwen.engine_errors import StreamBrokenError
from devmentor.qwen.flights import Flights, LaggedError, Seat


def shared() -> float:
    return metrics.SHARED._value.get()


async def together(tier: Tier, engine: Engine, count: int, mode: str, **more: Any) -> list[Answer]:
    """`count` equal questions that all wait for one generation, which then goes on."""
    engine.mode = mode
    before = shared()
    asking = [asyncio.create_task(tier.chat(**more)) for _ in range(count)]
    await until(lambda: shared() - before == count - 1)
    await until(lambda: bool(engine.questions))
    engine.release.set()
    return list(await asyncio.gather(*asking))


async def test_a_hundred_equal_questions_are_one_generation(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    answers = await together(tier, engine, 100, "hang")
    assert len(engine.questions) == 1
    assert {(answer.status, answer.served_by, answer.text) for answer in answers} == {(200, "engine", SAID)}
    assert sorted(answer.cache for answer in answers) == ["miss", *["shared"] * 99]
    assert (await tier.chat()).cache == "hit"


async def test_a_hundred_equal_streams_are_one_generation(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    answers = await together(tier, engine, 100, "pause", stream=True)
    assert len(engine.questions) == 1
    assert {answer.streamed_text for answer in answers} == {SAID}
    assert len({answer.raw for answer in answers}) == 1, "the same events"


async def test_events_come_to_everybody_while_the_engine_is_still_at_work(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "pause"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}

    async def first_word() -> bytes:
        async with tier.session.post(tier.url + "/v1/chat/completions", json=body, headers=tier.headers()) as response:
            return await response.content.readuntil(b"\n\n")

    assert b"Hel" in await first_word(), "the leader left after the first word"
    asking = asyncio.create_task(tier.chat("x", stream=True))
    assert b"Hel" in await first_word(), "who comes later reads from the start"
    engine.release.set()
    assert (await asking).streamed_text == SAID


async def test_who_wants_usage_gets_it_and_the_others_do_not(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "pause"
    before = shared()
    plain = asyncio.create_task(tier.chat(stream=True))
    await until(lambda: bool(engine.questions))
    counted = asyncio.create_task(tier.chat(stream=True, stream_options={"include_usage": True}))
    await until(lambda: shared() > before)
    engine.release.set()
    assert all(chunk["choices"] for chunk in (await plain).chunks)
    assert (await counted).chunks[-1]["usage"]["total_tokens"] == 12


async def test_a_whole_answer_is_taken_from_a_stream_that_is_on_its_way(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "pause"
    before = shared()
    stream = asyncio.create_task(tier.chat(stream=True))
    await until(lambda: bool(engine.questions))
    whole = asyncio.create_task(tier.chat())
    await until(lambda: shared() > before)
    engine.release.set()
    assert (await whole).text == (await stream).streamed_text == SAID
    assert len(engine.questions) == 1


@pytest.mark.parametrize(("mode", "stream"), [("hang", False), ("hang", True), ("pause", True)])
async def test_the_work_goes_on_while_anybody_waits_and_ends_with_the_last(
    start: StartTier, engine: Engine, mode: str, stream: bool
) -> None:
    tier = await start(pool_size=1, probe_s=60)
    engine.mode = mode
    before = shared()
    leader = asyncio.create_task(tier.chat(stream=stream))
    await until(lambda: bool(engine.questions))
    others = [asyncio.create_task(tier.chat(stream=stream)) for _ in range(2)]
    await until(lambda: shared() - before == 2)
    for leaving in (leader, others[0]):
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert (engine.cancelled, engine.active) == (0, 1)
    others[1].cancel()
    await until(lambda: engine.cancelled == 1)
    engine.mode = "ok"
    assert (await tier.chat("next")).status == 200, "the slot is free again"


async def test_the_leader_leaves_and_its_follower_gets_the_answer(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    before = shared()
    leader = asyncio.create_task(tier.chat())
    await until(lambda: bool(engine.questions))
    follower = asyncio.create_task(tier.chat())
    await until(lambda: shared() > before)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    engine.release.set()
    assert ((await follower).text, len(engine.questions)) == (SAID, 1)


async def test_an_error_is_not_multiplied(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60, breaker_errors=50)
    answers = await together(tier, engine, 20, "late error")
    assert {answer.status for answer in answers} == {503}
    assert len(engine.questions) == 2, "the leader's, and one try of all the others together"


async def test_after_the_leaders_error_the_others_try_themselves(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "late error"
    before = shared()
    leader = asyncio.create_task(tier.chat())
    await until(lambda: bool(engine.questions))
    others = [asyncio.create_task(tier.chat()) for _ in range(5)]
    await until(lambda: shared() - before == 5)
    engine.mode = "ok"
    engine.release.set()
    assert (await leader).status == 503
    assert [answer.status for answer in await asyncio.gather(*others)] == [200] * 5
    assert len(engine.questions) == 2


async def test_the_fallback_is_shared_too(start: StartTier, engine: Engine, urls: dict[str, str]) -> None:
    second = Engine()
    async with serving(second.app) as url:
        models = {MODEL: {"url": urls["engine"], "secondary": "spare"}, "spare": {"url": url}}
        tier = await start(models=models, probe_s=60)
        answers = await together(tier, engine, 10, "late error")
        assert {(answer.status, answer.served_by) for answer in answers} == {(200, "secondary")}
        assert (len(engine.questions), len(second.questions)) == (1, 1)


async def test_a_refusal_is_everybodys(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    answers = await together(tier, engine, 5, "late refusal")
    assert {(answer.status, answer.body["error"]["code"]) for answer in answers} == {(400, "too_long")}
    assert len(engine.questions) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"headers": {"Cache-Control": "no-store"}},
        {"headers": {"Cache-Control": "no-cache"}},
        {"tenant": "other"},
        {"temperature": 1},
        {"question": "another"},
    ],
)
async def test_what_is_not_equal_or_wants_its_own_is_not_shared(
    start: StartTier, engine: Engine, other: dict[str, Any]
) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    first = asyncio.create_task(tier.chat())
    await until(lambda: len(engine.questions) == 1)
    second = asyncio.create_task(tier.chat(**other))
    await until(lambda: len(engine.questions) == 2)
    engine.release.set()
    assert [answer.status for answer in await asyncio.gather(first, second)] == [200, 200]


async def test_a_new_document_makes_a_new_generation(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    engine.mode = "hang"
    first = asyncio.create_task(grounded.chat())
    await until(lambda: len(engine.questions) == 1)
    pbml.learn("The code word is heron.")
    second = asyncio.create_task(grounded.chat())
    await until(lambda: len(engine.questions) == 2)
    engine.release.set()
    await asyncio.gather(first, second)


async def test_each_of_them_has_its_turn_written_back(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    answers = await together(grounded, engine, 3, "pause", stream=True, metadata={"conversation_id": "c"})
    assert {answer.streamed_text for answer in answers} == {SAID}
    await until(lambda: len(pbml.written) == 6)
    assert len(engine.questions) == 1


async def test_an_answer_that_comes_while_the_second_level_is_asked_is_found(start: StartTier, engine: Engine) -> None:
    node = CacheNode()
    async with node.serving() as address:
        tier = await start(cache_nodes=[address], cache_budget_s=2.0, probe_s=60)
        engine.mode = "hang"
        first = asyncio.create_task(tier.chat())
        await until(lambda: bool(engine.questions))
        node.delay = 0.3
        asked = len(node.commands)
        second = asyncio.create_task(tier.chat())
        await until(lambda: len(node.commands) > asked)
        engine.release.set()
        assert (await first).cache == "miss"
        assert (await second).served_by == "cache-l1"
    assert len(engine.questions) == 1


async def test_equal_embeddings_share_too(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    before = shared()
    ask = {"model": "vectors", "input": "a"}
    asking = [asyncio.create_task(tier.request("POST", "/v1/embeddings", ask)) for _ in range(10)]
    await until(lambda: shared() - before == 9)
    engine.release.set()
    answers = await asyncio.gather(*asking)
    assert sorted(answer.cache for answer in answers) == ["miss", *["shared"] * 9]
    assert engine.embedded == 1


# -- memory -----------------------------------------------------------------------------------------------------------


class Source:
    """A stream of blocks of 100 bytes, as many as a test lets through."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.served = Served("engine", "miss")
        self.payload = b"{}"
        self.made = 0
        self.closed = False
        self.pause_at = count
        self.go_on = asyncio.Event()
        self._count = count
        self._error = error

    async def events(self) -> AsyncGenerator[list[bytes]]:
        for number in range(self._count):
            if number == self.pause_at:
                await self.go_on.wait()
            self.made += 1
            yield [b"%03d" % number + b"x" * 97]
            await asyncio.sleep(0)
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        self.closed = True


async def begin(flights: Flights, source: Source) -> Seat:
    async def work() -> Any:
        return source

    seat = flights.start(["k"], work)
    await seat.begun()
    return seat


async def numbers(seat: Seat) -> list[int]:
    return [int(event[:3]) async for block in seat.blocks() for event in block]


async def rest_of(blocks: AsyncGenerator[list[bytes]], came: list[bytes]) -> None:
    async for block in blocks:
        came.extend(block)


async def test_the_engine_is_not_read_faster_than_the_fastest_reader_reads() -> None:
    flights, source = Flights(500), Source(100)
    seat = await begin(flights, source)
    await asyncio.sleep(0.05)
    assert source.made <= 6, "nobody has read anything yet"
    assert await numbers(seat) == list(range(100))
    assert source.closed


async def test_a_slow_reader_is_cut_and_holds_nobody_up() -> None:
    flights, source = Flights(500), Source(100)
    fast = await begin(flights, source)
    slow = flights.join(["k"])
    assert slow is not None
    slow_blocks = slow.blocks()
    await anext(slow_blocks)
    assert await numbers(fast) == list(range(100))
    with pytest.raises(LaggedError):
        await rest_of(slow_blocks, [])


async def test_who_comes_after_the_start_is_gone_does_not_join() -> None:
    flights, source = Flights(500), Source(100)
    source.pause_at = 50
    reader = asyncio.create_task(numbers(await begin(flights, source)))
    await until(lambda: source.made == 50)
    assert flights.join(["k"]) is None
    source.go_on.set()
    assert await reader == list(range(100))


async def test_a_stream_that_breaks_breaks_for_all_who_read_it_after_what_came() -> None:
    flights, source = Flights(5000), Source(3, StreamBrokenError("broken", "cut"))
    first = await begin(flights, source)
    second = flights.join(["k"])
    assert second is not None
    for seat in (first, second):
        came: list[bytes] = []
        with pytest.raises(StreamBrokenError):
            await rest_of(seat.blocks(), came)
        assert len(came) == 3
    assert (source.closed, len(flights)) == (True, 0)


async def test_nothing_is_left_of_flights_that_ended() -> None:
    flights = Flights(500)

    async def whole() -> Whole:
        return Whole(b"{}", Served("engine", "miss"))

    async def fails() -> Whole:
        raise RuntimeError("no")

    seat = flights.start(["a"], whole)
    await seat.begun()
    await seat.leave()
    seat = flights.start(["b"], fails)
    with pytest.raises(RuntimeError):
        await seat.begun()
    await seat.leave()
    assert len(flights) == 0


async def test_a_stream_that_does_not_close_leaves_no_reader_waiting() -> None:
    class Stuck(Source):
        async def close(self) -> None:
            raise TypeError("the connection is gone")

    async def work() -> Any:
        return Stuck(2)

    seat = Flights(10_000).start(["k"], work)
    await seat.begun()
    async with asyncio.timeout(2):
        assert [event async for block in seat.blocks() for event in block]
