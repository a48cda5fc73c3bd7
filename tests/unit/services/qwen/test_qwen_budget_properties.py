"""What holds of budgets over several instances, whatever happens: plans of steps made by hypothesis."""

import asyncio
from typing import Any

from budget_world import INSTANCES, LIMIT, World
from hypothesis import given, settings
from hypothesis import strategies as st

numbers = st.integers(0, INSTANCES - 1)
steps = st.one_of(
    st.tuples(st.just("ask"), numbers, st.integers(1, 400), st.integers(-400, 0)),
    st.tuples(st.just("ask"), numbers, st.integers(1, 60), st.integers(-60, 300)),
    st.tuples(st.just("settle"), st.integers(0, 50)),
    st.tuples(st.just("pass"), st.sampled_from([0.3, 2.0, 20.0, 61.0, 200.0])),
    st.tuples(st.just("store"), st.sampled_from(["ok", "ok", "away", "lost", "late"])),
    st.tuples(st.just("tidy"), numbers),
    st.tuples(st.just("deliver")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_no_window_is_overspent_beyond_the_bound_and_no_debt_is_forgotten(plan: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        world = World(0.002)
        for step in plan:
            # An answer cannot be more than its estimate less than nothing.
            await world.play((*step[:3], max(step[3], -step[2])) if step[0] == "ask" else step)
            world.check()

    asyncio.run(run())


calm = st.one_of(
    st.tuples(st.just("ask"), numbers, st.integers(1, 600), st.integers(-600, 0)),
    st.tuples(st.just("settle"), st.integers(0, 50)),
    st.tuples(st.just("pass"), st.sampled_from([0.3, 6.0, 30.0, 61.0])),
    st.tuples(st.just("tidy"), numbers),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(calm, max_size=60))
def test_with_the_database_there_and_estimates_that_hold_a_limit_is_never_exceeded(plan: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        world = World()
        for step in plan:
            await world.play((*step[:3], max(step[3], -step[2])) if step[0] == "ask" else step)
            for window in {request.window for request in world.requests}:
                assert sum(request.used for request in world.requests if request.window == window) <= LIMIT

    asyncio.run(run())
