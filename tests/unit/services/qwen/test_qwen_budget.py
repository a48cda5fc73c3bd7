"""Budgets over several instances, case by case, and the arithmetic of a row."""

import asyncio

import pytest
from budget_world import INSTANCES, KEY, LIMIT, LOAN, PER_MINUTE, World

from devmentor.common.auth import TokenBudget
from devmentor.common.errors import ApiError
from devmentor.qwen.budget import MINUTE_S, Account, Ask, Row, decide
from devmentor.qwen.budgets import Budgets, Reservation


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
