"""Budgets over several instances: what holds whatever happens, and the arithmetic of a row."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from budget_doubles import Clock, MemoryStore
from hypothesis import given, settings
from hypothesis import strategies as st

from devmentor.common.auth import TokenBudget
from devmentor.common.errors import ApiError
from devmentor.qwen.budget import MINUTE_S, Account, Ask, Row, decide
from devmentor.qwen.budgets import Budgets, Reservation

KEY = bytes(32)
LIMIT = 1000
SHARE = 0.05
LOAN = int(LIMIT * SHARE)
INSTANCES = 3
PER_MINUTE = TokenBudget(KEY, LIMIT, None)


def row(window: int, taken: int, limit: int | None = None) -> Row:
    return Row(window, taken, limit)


def test_blocks_shrink_with_what_is_left_and_a_need_is_met_as_long_as_it_fits() -> None:
    after, grant = decide(None, 0.0, MINUTE_S, Ask(3200, 1, 0))
    assert (grant.tokens, grant.left, after) == (100, 3100, row(0, 100, 3200))
    _, grant = decide(row(0, 3000), 0.0, MINUTE_S, Ask(3200, 1, 0))
    assert grant.tokens == 25, "an eighth of what is left"
    _, grant = decide(row(0, 3000), 0.0, MINUTE_S, Ask(3200, 200, 0))
    assert (grant.tokens, grant.left) == (200, 0)
    after, grant = decide(row(0, 3000), 45.0, MINUTE_S, Ask(3200, 201, 0))
    assert (grant.tokens, grant.left, grant.ends_in_s, after.taken) == (0, 200, 15.0, 3000)


def test_what_went_beyond_a_limit_is_taken_off_the_windows_that_follow() -> None:
    after, grant = decide(row(5, 90), 5 * 60.0, MINUTE_S, Ask(100, 10, 150))
    assert (after.taken, grant.tokens, grant.left) == (240, 0, 0), "a refused ask pays its debt all the same"
    assert decide(after, 6 * 60.0, MINUTE_S, Ask(100, 0, 0))[0] == row(6, 140, 100)
    assert decide(after, 7 * 60.0, MINUTE_S, Ask(100, 0, 0))[0] == row(7, 40, 100)
    assert decide(after, 99 * 60.0, MINUTE_S, Ask(100, 0, 0))[0] == row(99, 0, 100)


def test_a_lowered_limit_makes_no_debt_of_what_was_allowed_before() -> None:
    used = decide(None, 5 * 60.0, MINUTE_S, Ask(1000, 0, 900))[0]
    lowered, grant = decide(used, 5 * 60.0 + 30, MINUTE_S, Ask(100, 1, 0))
    assert (lowered.taken, grant.tokens) == (900, 0), "in the window itself nothing more is given"
    assert decide(lowered, 6 * 60.0, MINUTE_S, Ask(100, 0, 0))[0] == row(6, 0, 100)
    beyond = decide(used, 5 * 60.0, MINUTE_S, Ask(1000, 0, 250))[0]
    assert decide(beyond, 6 * 60.0, MINUTE_S, Ask(100, 0, 0))[0] == row(6, 150, 100), "what went beyond it is one"
    assert decide(beyond, 8 * 60.0, MINUTE_S, Ask(100, 0, 0))[0] == row(8, 0, 100)


def test_a_clock_that_went_back_brings_no_window_back() -> None:
    after, grant = decide(row(9, 100), 8 * 60.0 + 59, MINUTE_S, Ask(100, 10, 0))
    assert (after, grant.tokens, grant.ends_in_s) == (row(9, 100, 100), 0, 61.0)


def test_tokens_go_back_to_their_own_window_only() -> None:
    assert decide(row(3, 50), 3 * 60.0, MINUTE_S, Ask(100, 0, 0, back=20, window=3))[0].taken == 30
    assert decide(row(3, 50), 4 * 60.0, MINUTE_S, Ask(100, 0, 0, back=20, window=3))[0] == row(4, 0, 100)
    assert decide(row(4, 50), 4 * 60.0, MINUTE_S, Ask(100, 0, 0, back=20, window=3))[0].taken == 50


def test_nothing_is_lent_where_tokens_came_back_while_the_row_was_asked() -> None:
    account, now = Account(MINUTE_S, 1000), 60.0 * 1000
    ask = account.ask(600)
    account.granted(ask, decide(None, now, MINUTE_S, ask)[1], now)
    first = account.take(600, now)
    assert first is not None
    account.give_back(first, 10)
    held = account.held
    share = account.lend(100, 50, now)
    assert share is not None
    assert (share.tokens, share.lent, account.owed, account.held) == (100, 0, 0, held - 100)


def test_an_answer_that_comes_late_is_not_spent_in_another_window() -> None:
    account = Account(MINUTE_S, 100)
    ask = account.ask(10)
    old = decide(None, 30.0, MINUTE_S, ask)[1]
    new = decide(None, 60.0, MINUTE_S, ask)[1]
    account.granted(ask, new, 60.0)
    account.granted(ask, old, 30.0)
    assert account.held == new.tokens
    assert account.ends_in_s(60.0) == 60.0


@dataclass
class Running:
    instance: int
    window: int
    reservation: Reservation
    estimate: int
    excess: int
    settled: bool = False

    @property
    def used(self) -> int:
        return self.estimate + self.excess if self.settled else self.estimate


class World:
    """Instances that share one row, and what was really used of it."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.clock = Clock()
        self._timeout_s = timeout_s
        self.store = MemoryStore(self.clock)
        self.budgets = [self._budgets() for _ in range(INSTANCES)]
        self.begun = self.clock.now // MINUTE_S
        self.requests: list[Running] = []

    def _budgets(self) -> Budgets:
        return Budgets(self.store, timeout_s=self._timeout_s, lend_share=SHARE, clock=self.clock)

    @property
    def window(self) -> int:
        return int(self.clock.now // MINUTE_S)

    async def play(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("ask", instance, estimate, excess):
                try:
                    reservation = await self.budgets[instance].reserve(PER_MINUTE, estimate)
                except ApiError:
                    pass
                else:
                    self.requests.append(Running(instance, self.window, reservation, estimate, excess))
            case ("settle", number):
                waiting = [request for request in self.requests if not request.settled]
                if waiting:
                    request = waiting[number % len(waiting)]
                    request.settled = True
                    request.reservation.settle(request.used)
            case ("pass", seconds):
                self.clock.now += seconds
            case ("store", mode):
                self.store.mode = mode
            case ("tidy", instance):
                await self.budgets[instance].tidy(5.0)
            case ("deliver",):
                self.store.release.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                self.store.release = asyncio.Event()

    def account(self, instance: int) -> Account | None:
        return self.budgets[instance]._accounts.get((KEY, MINUTE_S))

    def check(self) -> None:
        """The bound of each window, and that nothing spent is ever forgotten."""
        for window in {request.window for request in self.requests}:
            mine = [request for request in self.requests if request.window == window]
            beyond = sum(max(0, request.excess) for request in mine if request.settled)
            assert sum(request.used for request in mine) <= LIMIT + INSTANCES * LOAN + beyond
        row = self.store.rows.get((KEY, MINUTE_S))
        windows = self.window - self.begun + 1
        overdraft = max(0, row.taken - LIMIT) if row is not None and row.window == self.window else 0
        if row is not None and row.window < self.window:
            overdraft = max(0, row.taken - LIMIT * (self.window - row.window))
        owed = sum(account.owed for number in range(INSTANCES) if (account := self.account(number)) is not None)
        assert sum(request.used for request in self.requests) <= windows * LIMIT + overdraft + owed


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


async def reserve_all(budgets: list[Budgets], budget: TokenBudget, tokens: int, times: int) -> int:
    """How many of so many requests, all at once and dealt out to the instances, got their tokens."""
    outcomes = await asyncio.gather(
        *(budgets[number % len(budgets)].reserve(budget, tokens) for number in range(times)), return_exceptions=True
    )
    assert all(isinstance(outcome, Reservation | ApiError) for outcome in outcomes), outcomes
    return sum(isinstance(outcome, Reservation) for outcome in outcomes)


async def test_the_row_is_touched_by_a_few_requests_of_many() -> None:
    world = World()
    budget = TokenBudget(KEY, 100_000, None)
    got = await reserve_all(world.budgets, budget, 100, 3000)
    # 24 blocks of a 32nd, 26 of an eighth of what is left, 8 of the size of a need, a refusal for each instance.
    assert len(world.store.asked) <= 24 + 26 + 8 + INSTANCES
    # What is left of the blocks on the instances is less than a need on each.
    assert 1000 - INSTANCES <= got <= 1000


async def test_tokens_that_nobody_uses_go_back_and_another_instance_gets_them() -> None:
    world = World()
    first, second, _ = world.budgets
    kept = await first.reserve(PER_MINUTE, 700)
    kept.settle(10)
    with pytest.raises(ApiError):
        await second.reserve(PER_MINUTE, 700)
    world.clock.now += 6
    await first.tidy(5.0)
    await second.reserve(PER_MINUTE, 700)


async def test_a_stopped_instance_leaves_nothing_behind() -> None:
    world = World()
    (await world.budgets[0].reserve(PER_MINUTE, 300)).settle(300)
    await world.budgets[0].drain()
    assert world.store.rows[KEY, MINUTE_S].taken == 300


async def test_an_excess_is_paid_before_the_next_lease() -> None:
    world = World()
    (await world.budgets[0].reserve(PER_MINUTE, 900)).settle(1500)
    await world.budgets[0].tidy(5.0)
    assert world.store.rows[KEY, MINUTE_S].taken == 1500
    with pytest.raises(ApiError):
        await world.budgets[1].reserve(PER_MINUTE, 1)
    world.clock.now += 60
    with pytest.raises(ApiError, match="Remaining 500"):
        await world.budgets[1].reserve(PER_MINUTE, 501)
    await world.budgets[1].reserve(PER_MINUTE, 500)


async def test_while_the_database_is_away_the_lease_then_a_loan_then_429_budget_unknown() -> None:
    world = World()
    budgets = world.budgets[0]
    leased = await budgets.reserve(PER_MINUTE, 1)  # brings a block of 31 along
    world.store.mode = "away"
    for _ in range(3):
        await budgets.reserve(PER_MINUTE, 10)
    await budgets.reserve(PER_MINUTE, LOAN)
    with pytest.raises(ApiError) as caught:
        await budgets.reserve(PER_MINUTE, 1)
    assert (caught.value.status, caught.value.code) == (429, "budget_unknown")
    assert caught.value.headers["Retry-After"] == "1"
    # An outage of any length is not lent more; back again, the loan is in the row.
    world.clock.now += 600
    with pytest.raises(ApiError, match="cannot be known"):
        await budgets.reserve(PER_MINUTE, 1)
    world.store.mode = "ok"
    world.clock.now += 1
    await budgets.reserve(PER_MINUTE, 1)
    row = world.store.rows[KEY, MINUTE_S]
    assert row.taken == LOAN + LIMIT // 32
    leased.settle(1)


async def test_a_database_that_hangs_costs_one_wait_and_is_then_left_alone() -> None:
    world = World(0.002)
    budgets = world.budgets[0]
    world.store.mode = "frozen"
    async with asyncio.timeout(1.0):
        for _ in range(LOAN):
            await budgets.reserve(PER_MINUTE, 1)
    assert len(world.store.asked) == 1


async def test_what_is_leased_or_given_back_does_not_outlive_its_window() -> None:
    world = World()
    budgets = world.budgets[0]
    (await budgets.reserve(PER_MINUTE, 500)).settle(0)
    running = await budgets.reserve(PER_MINUTE, 400)
    world.clock.now += 60
    world.store.mode = "away"
    running.settle(0)
    with pytest.raises(ApiError, match="cannot be known"):
        await budgets.reserve(PER_MINUTE, LOAN + 1)


async def test_returned_tokens_are_let_go_whether_the_row_gets_them_or_not() -> None:
    world = World()
    budgets = world.budgets[0]
    (await budgets.reserve(PER_MINUTE, 500)).settle(0)
    world.clock.now += 6
    world.store.mode = "lost"
    await budgets.tidy(5.0)
    assert world.store.rows[KEY, MINUTE_S].taken == 0
    with pytest.raises(ApiError, match="cannot be known"):
        await budgets.reserve(PER_MINUTE, 500)


async def test_nothing_is_lent_of_a_window_that_the_row_said_is_used_up() -> None:
    world = World()
    first, second, _ = world.budgets
    await first.reserve(PER_MINUTE, LIMIT - 20)
    with pytest.raises(ApiError):
        await second.reserve(PER_MINUTE, 30)
    world.clock.now += 2
    world.store.mode = "away"
    with pytest.raises(ApiError, match="cannot be known"):
        await second.reserve(PER_MINUTE, 30)
    await second.reserve(PER_MINUTE, 20)


async def test_a_debt_that_was_paid_twice_may_be_spent() -> None:
    world = World(0.002)
    budgets = world.budgets[0]
    (await budgets.reserve(PER_MINUTE, 100)).settle(400)
    world.store.mode = "late"
    await budgets.tidy(5.0)  # pays; the answer comes after the deadline
    world.store.mode = "ok"
    world.clock.now += 1
    await budgets.tidy(5.0)  # pays again
    assert world.store.rows[KEY, MINUTE_S].taken == 700
    world.store.release.set()
    await asyncio.sleep(0.01)
    world.store.mode = "away"
    await budgets.reserve(PER_MINUTE, 300)


async def test_a_loan_that_was_not_used_is_not_owed() -> None:
    world = World()
    budgets = world.budgets[0]
    world.store.mode = "away"
    for _ in range(5):
        (await budgets.reserve(PER_MINUTE, LOAN)).settle(0)
    with pytest.raises(ApiError, match="cannot be known"):
        await budgets.reserve(PER_MINUTE, LOAN + 1)


async def test_a_client_that_leaves_during_a_lease_loses_no_tokens() -> None:
    world = World()
    budgets = world.budgets[0]
    task = asyncio.create_task(budgets.reserve(PER_MINUTE, 800))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    world.store.mode = "away"
    await budgets.reserve(PER_MINUTE, 800)


async def test_both_limits_count_and_a_refusal_by_one_gives_the_others_tokens_back() -> None:
    world = World()
    budgets = world.budgets[0]
    both = TokenBudget(KEY, 100, 150)
    await budgets.reserve(both, 100)
    world.clock.now += 60
    with pytest.raises(ApiError, match="tokens per day"):
        await budgets.reserve(both, 100)
    await budgets.reserve(TokenBudget(KEY, 100, None), 100)


async def test_a_refusal_is_repeated_without_asking_for_a_second() -> None:
    world = World()
    await world.budgets[0].reserve(PER_MINUTE, LIMIT)
    for _ in range(20):
        with pytest.raises(ApiError):
            await world.budgets[0].reserve(PER_MINUTE, 5)
    assert len(world.store.asked) == 1
    world.clock.now += 1.5
    with pytest.raises(ApiError):
        await world.budgets[0].reserve(PER_MINUTE, 5)
    assert len(world.store.asked) == 2


async def test_without_a_database_a_key_with_a_budget_is_refused_and_one_without_passes() -> None:
    budgets = Budgets(None, timeout_s=1, lend_share=1.0)
    with pytest.raises(ApiError, match="cannot be known"):
        await budgets.reserve(PER_MINUTE, 1)
    assert not (await budgets.reserve(None, 10**9)).headers
