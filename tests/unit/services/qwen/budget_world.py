"""Instances of QWEN that share one row of a budget, and what was really used of it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from budget_doubles import Clock, MemoryStore

from devmentor.common.auth import TokenBudget
from devmentor.common.errors import ApiError
from devmentor.qwen.budget import MINUTE_S, Account
from devmentor.qwen.budgets import Budgets, Reservation

KEY = bytes(32)
LIMIT = 1000
SHARE = 0.05
LOAN = int(LIMIT * SHARE)
INSTANCES = 3
PER_MINUTE = TokenBudget(KEY, LIMIT, None)


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
