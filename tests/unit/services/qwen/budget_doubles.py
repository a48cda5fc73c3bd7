"""A budget store in memory that keeps rows as PostgreSQL does and fails as a test says."""

import asyncio

from devmentor.qwen.budget import Ask, Grant, Row, decide
from devmentor.qwen.budget_store import BudgetUnavailableError


class Clock:
    """Seconds, for instances and the database alike."""

    def __init__(self, now: float = 1_000_000_020.0) -> None:  # the beginning of a minute
        self.now = now

    def __call__(self) -> float:
        return self.now


class MemoryStore:
    """`mode`: "ok"; "away", nothing is committed; "lost", committed and the answer does not arrive; "late", committed
    and the answer comes when `release` is set; "frozen", neither."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.mode = "ok"
        self.rows: dict[tuple[bytes, int], Row] = {}
        self.asked: list[Ask] = []
        self.release = asyncio.Event()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def probe(self) -> str:
        return "here"

    async def lease(self, key: bytes, period_s: int, ask: Ask) -> Grant:
        self.asked.append(ask)
        await asyncio.sleep(0)
        if self.mode == "frozen":
            await asyncio.Event().wait()
        if self.mode == "away":
            raise BudgetUnavailableError("the database is away")
        row, grant = decide(self.rows.get((key, period_s)), self.clock(), period_s, ask)
        self.rows[key, period_s] = row
        if self.mode == "lost":
            raise BudgetUnavailableError("the answer was lost")
        if self.mode == "late":
            await self.release.wait()
        return grant
