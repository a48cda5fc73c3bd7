"""The breaker by itself, with a clock of the test's, and what clients see of it."""

import asyncio
from typing import Any

from conftest import StartTier
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from qwen_doubles import MODEL, Engine, serving, until

from devmentor.qwen.breaker import Breaker, BreakerLimits, Pass, State
from devmentor.qwen.window import Window


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, name: str = "b", **limits: Any) -> Breaker:
    return Breaker(name, BreakerLimits(**limits), clock)


def let_through(of: Breaker, **options: bool) -> Pass:
    passed = of.allow(**options)
    assert passed is not None
    return passed


def opened(name: str, cause: str) -> float:
    return REGISTRY.get_sample_value("devmentor_qwen_breaker_opened_total", {"model": name, "cause": cause}) or 0.0


# -- errors in a row --------------------------------------------------------------------------------------------------


def test_half_open_lets_one_request_probe() -> None:
    clock = Clock()
    one = breaker(clock, "row", errors=2, open_s=30)
    let_through(one).error()
    let_through(one).success()
    let_through(one).error()
    assert one.state is State.CLOSED, "errors in a row count, not errors"
    let_through(one).error()
    assert (one.state, one.allow(), one.retry_after_s) == (State.OPEN, None, 30)
    clock.now += 30
    probe = let_through(one)
    assert one.state is State.HALF_OPEN
    assert one.allow() is None, "one at a time"
    probe.abandon()
    probe = let_through(one)  # a client that left says nothing about the engine
    probe.error()
    assert (one.state, one.allow()) == (State.OPEN, None)
    clock.now += 30
    let_through(one).success()
    assert one.state is State.CLOSED
    assert (opened("row", "consecutive"), opened("row", "probe")) == (1, 1)


def test_a_stream_is_judged_at_its_end() -> None:
    clock = Clock()
    one = breaker(clock, errors=2, open_s=30)
    for _ in range(2):
        stream = let_through(one)
        stream.began()
        stream.error()
    assert one.state is State.OPEN
    clock.now += 30
    probe = let_through(one)
    probe.began()
    let_through(one).abandon()  # a probe that streams holds nobody up
    probe.error()
    assert one.state is State.OPEN, "the errors before the probe still count"
    clock.now += 30
    probe = let_through(one)
    probe.began()
    probe.success()
    let_through(one).error()
    assert one.state is State.CLOSED


def test_what_was_let_through_before_it_opened_says_nothing_afterwards() -> None:
    clock = Clock()
    one = breaker(clock, errors=2, open_s=30)
    early = [let_through(one) for _ in range(4)]
    early[0].error()
    early[1].error()
    early[2].began()
    early[2].success()
    assert one.state is State.OPEN, "an answer from before does not close it"
    clock.now += 20
    early[3].error()
    assert one.retry_after_s == 10, "nor does an error from before keep it open for longer"
    clock.now += 10
    probe = let_through(one)
    early[3].abandon()
    assert one.allow() is None, "only the probe's own client ends the probe"
    probe.success()
    assert one.state is State.CLOSED


def test_a_probe_that_says_nothing_is_given_up() -> None:
    clock = Clock()
    one = breaker(clock, errors=1, open_s=30)
    let_through(one).error()
    clock.now += 30
    let_through(one)
    clock.now += 29
    assert one.allow() is None
    clock.now += 1
    let_through(one).success()
    assert one.state is State.CLOSED


# -- canaries ---------------------------------------------------------------------------------------------------------


def canary(of: Breaker) -> Pass:
    passed = of.canary()
    assert passed is not None
    return passed


def test_after_errors_in_a_row_a_canary_closes_at_once_and_the_next_error_opens_again() -> None:
    clock = Clock()
    one = breaker(clock, errors=3, open_s=30)
    assert one.canary() is None, "a closed circuit learns from clients"
    for _ in range(3):
        let_through(one).error()
    assert one.allow() is None
    canary(one).success()
    assert one.state is State.CLOSED
    let_through(one).error()
    assert one.state is State.OPEN, "on probation"
    canary(one).success()
    let_through(one).success()
    let_through(one).error()
    let_through(one).error()
    assert one.state is State.CLOSED, "a client's answer ends the probation"


def test_a_canary_that_fails_before_the_pause_is_over_says_nothing_new() -> None:
    clock = Clock()
    one = breaker(clock, "canary", errors=1, open_s=30)
    let_through(one).error()
    for _ in range(5):
        clock.now += 5
        canary(one).error()
        canary(one).abandon()
    assert (one.retry_after_s, opened("canary", "consecutive"), opened("canary", "probe")) == (5, 1, 0)
    clock.now += 5
    canary(one).error()
    assert (one.retry_after_s, opened("canary", "probe")) == (30, 1), "in its turn it is the probe"


def test_a_canary_closes_although_a_clients_probe_hangs() -> None:
    clock = Clock()
    one = breaker(clock, errors=1, open_s=30)
    let_through(one).error()
    clock.now += 30
    hanging = let_through(one)
    canary(one).success()
    assert one.state is State.CLOSED
    hanging.error()
    assert one.state is State.CLOSED, "it was let through before"


def test_a_canary_from_before_it_opened_does_not_close_it() -> None:
    clock = Clock()
    one = breaker(clock, errors=1, open_s=30)
    let_through(one).error()
    early = canary(one)
    canary(one).success()
    let_through(one).error()
    early.success()
    assert one.state is State.OPEN


def test_a_canary_says_nothing_of_a_rate() -> None:
    clock = Clock()
    one = breaker(clock, errors=5, error_rate=0.1, min_volume=10, open_s=30)
    for number in range(10):
        passed = let_through(one)
        (passed.error if number in (1, 3) else passed.success)()
    assert (one.state, one.canary()) == (State.OPEN, None)
    clock.now += 30
    canary(one).success()
    assert one.state is State.CLOSED
    let_through(one).error()
    assert one.state is State.CLOSED, "no probation: one error in 500 is what it is known for"


# -- error rate -------------------------------------------------------------------------------------------------------


def one_error_in(one: Breaker, clock: Clock, every: int, count: int) -> int | None:
    """`count` requests, ten a second, each `every`th an error; which one opened, None where none did."""
    for number in range(1, count + 1):
        passed = let_through(one)
        (passed.error if number % every == 0 else passed.success)()
        clock.now += 0.1
        if one.state is not State.CLOSED:
            return number
    return None


def test_one_error_in_500_opens_at_the_minimum_volume_and_not_before() -> None:
    clock = Clock()
    one = breaker(clock, "rate", error_rate=0.001, min_volume=1000, window_s=300)
    assert one_error_in(one, clock, 500, 5000) == 1000
    assert (opened("rate", "rate"), opened("rate", "consecutive")) == (1, 0)


def test_one_error_in_2000_never_opens() -> None:
    clock = Clock()
    assert one_error_in(breaker(clock), clock, 2000, 20_000) is None


def test_a_rate_of_zero_turns_the_rule_off() -> None:
    clock = Clock()
    assert one_error_in(breaker(clock, error_rate=0), clock, 10, 5000) is None


def test_below_the_minimum_volume_no_rate_counts() -> None:
    clock = Clock()
    one = breaker(clock, min_volume=1000, window_s=300)
    for number in range(5000):  # two a second: 600 in the window
        passed = let_through(one)
        (passed.error if number % 100 == 0 else passed.success)()
        clock.now += 0.5
    assert one.state is State.CLOSED


def test_an_engine_with_errors_gets_its_way_back_and_a_full_volume_before_the_next_opening() -> None:
    clock = Clock()
    one = breaker(clock, "back", min_volume=1000, window_s=300)
    for _ in range(3):
        assert one_error_in(one, clock, 500, 5000) == 1000
        assert one.allow() is None
        clock.now += 30
        let_through(one).success()
        assert one.state is State.CLOSED
    assert REGISTRY.get_sample_value("devmentor_qwen_breaker_window_requests", {"model": "back"}) == 0


@given(st.lists(st.tuples(st.sampled_from(["success", "error", "abandon", "began", "forget"]), st.floats(0, 40))))
def test_whatever_happened_a_success_after_the_pause_closes_it(events: list[tuple[str, float]]) -> None:
    clock = Clock()
    one = breaker(clock, errors=2, open_s=30, error_rate=0.1, min_volume=10, window_s=60)
    for what, pause in events:
        passed = one.allow()
        if passed is not None and what != "forget":
            getattr(passed, what)()
        clock.now += pause
    clock.now += 30  # the pause, or the time that a forgotten probe is given
    let_through(one).success()
    assert one.state is State.CLOSED


def test_only_a_rate_lets_the_last_resort_through_and_five_errors_end_that() -> None:
    clock = Clock()
    one = breaker(clock, errors=5, error_rate=0.1, min_volume=10)
    for number in range(10):
        passed = let_through(one)
        (passed.error if number in (1, 3) else passed.success)()
    assert (one.state, one.allow()) == (State.OPEN, None)
    let_through(one, last_resort=True).success()
    assert one.state is State.OPEN, "the last resort does not probe"
    for _ in range(5):
        let_through(one, last_resort=True).error()
    assert one.allow(last_resort=True) is None


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_the_window_counts_what_is_younger_than_nine_tenths_and_nothing_older_than_its_span(
    events: list[tuple[float, bool]],
) -> None:
    clock = Clock()
    window = Window(100, clock)
    seen: list[tuple[float, bool]] = []
    for pause, error in events:
        clock.now += pause
        window.record(error=error)
        seen.append((clock.now, error))
        for count, errors in ((window.volume, False), (window.errors, True)):
            ages = [clock.now - at for at, wrong in seen if wrong or not errors]
            assert sum(age <= 90 for age in ages) <= count <= sum(age <= 100 for age in ages)


# -- clients ----------------------------------------------------------------------------------------------------------

SMALL = {"breaker_error_rate": 0.1, "breaker_min_volume": 10, "breaker_open_s": 0.3}


async def until_open_by_rate(tier: Any, engine: Engine) -> None:
    for number in range(10):
        engine.mode = "error" if number in (1, 3) else "ok"
        await tier.chat(f"before {number}", headers={"X-DevMentor-Context": "none"})
    engine.mode = "ok"


async def test_an_engine_that_errs_rarely_still_answers_what_nothing_else_can(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60, **SMALL | {"breaker_open_s": 60})
    await until_open_by_rate(tier, engine)
    assert REGISTRY.get_sample_value("devmentor_qwen_breaker_state", {"model": MODEL}) == State.OPEN
    for stream in (False, True):
        answer = await tier.chat("after", stream=stream, headers={"Cache-Control": "no-store"})
        assert (answer.status, answer.served_by) == (200, "engine")
    for number in range(5):
        engine.mode = "error"
        assert (await tier.chat(f"dead {number}")).status == 503
    asked = len(engine.questions)
    assert (await tier.chat("dead")).status == 503
    assert len(engine.questions) == asked, "five errors in a row: it is left alone now"


async def test_while_it_is_open_by_rate_the_secondary_serves_and_then_the_primary_again(
    start: StartTier, engine: Engine, urls: dict[str, str]
) -> None:
    second = Engine()
    async with serving(second.app) as url:
        models = {MODEL: {"url": urls["engine"], "secondary": "spare"}, "spare": {"url": url}}
        tier = await start(models=models, probe_s=60, **SMALL)
        await until_open_by_rate(tier, engine)
        assert (await tier.chat("during")).served_by == "secondary"

        await asyncio.sleep(SMALL["breaker_open_s"])
        assert (await tier.chat("probe")).served_by == "engine"
        assert (await tier.chat("later")).served_by == "engine"


def state_of(model: str = MODEL) -> float | None:
    return REGISTRY.get_sample_value("devmentor_qwen_breaker_state", {"model": model})


async def until_dead(tier: Any, engine: Engine) -> None:
    engine.mode = "error"
    for number in range(5):
        await tier.chat(f"dead {number}")
    assert state_of() == State.OPEN


async def is_ready(tier: Any) -> bool:
    return (await tier.request("GET", "/ready")).status == 200


async def test_it_closes_without_any_client(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=0.05, breaker_open_s=60)
    await until_dead(tier, engine)
    await asyncio.sleep(0.2)
    assert state_of() == State.OPEN, "the engine is still broken"
    engine.mode = "ok"
    await until(lambda: state_of() == State.CLOSED, 2)


async def test_an_instance_that_is_ready_again_answers_with_its_engine(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=0.05, breaker_open_s=60)
    await until_dead(tier, engine)
    async with asyncio.timeout(5):
        while await is_ready(tier):  # noqa: ASYNC110 - reports are a second old
            await asyncio.sleep(0.05)
        engine.mode = "ok"
        while not await is_ready(tier):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    answer = await tier.chat("back")
    assert (answer.status, answer.served_by) == (200, "engine")


async def test_an_engine_that_fails_clients_only_stays_ready_and_gets_an_error_a_canary(
    start: StartTier, engine: Engine
) -> None:
    tier = await start(probe_s=0.25, breaker_open_s=60)
    await until(lambda: len(engine.bodies) > 0)
    engine.mode = "error to clients"
    until_s, number = asyncio.get_running_loop().time() + 2, 0
    while asyncio.get_running_loop().time() < until_s:
        number += 1
        assert (await tier.chat(f"poison {number}")).status == 503
    assert 5 < len(engine.questions) <= 5 + 2 / 0.25 + 1, f"of {number}"
    ready = await tier.request("GET", "/ready")
    assert ready.status == 200
    assert ready.body["checks"][f"engine-{MODEL}"]["detail"].startswith("tokens move")
