"""Load of a fixed rate, free of coordinated omission.

Requests begin when the schedule says, whether or not earlier ones were answered (open loop), and a latency is counted
from the moment that the schedule meant the request for: where the generator or the server falls behind, the wait is
part of the latency and not left out. (G. Tene, How NOT to measure latency, 2013; wrk2's README.)
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

Send = Callable[[int], Awaitable[bool]]
"""Sends request N; whether it was answered as it should be."""


@dataclass(slots=True)
class Outcome:
    """`latencies_s` of the answers that were right, from their intended start; `behind_s` is how late the generator
    itself was at worst in sending: above a few milliseconds it needs more processor time."""

    rate: float
    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    behind_s: float = 0.0
    seconds: float = 0.0

    @property
    def achieved(self) -> float:
        """Right answers a second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Seconds that this share of the requests took at most (nearest rank); infinite where none was right."""
        return percentile(self.latencies_s, share)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    if not values:
        return math.inf
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def schedule(rate: float, seconds: float) -> Iterator[float]:
    """Intended starts, in seconds from the beginning, evenly spaced."""
    for number in range(int(rate * seconds)):
        yield number / rate


async def run(send: Send, rate: float, seconds: float, *, most_waiting: int = 5000) -> Outcome:
    """Send at the rate for so long, then wait for what is under way. A request that finds `most_waiting` of them
    waiting is counted as failed: the server is beyond what it can do."""
    outcome = Outcome(rate)
    running: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()

    async def one(number: int, intended: float) -> None:
        outcome.behind_s = max(outcome.behind_s, time.perf_counter() - intended)
        try:
            right = await send(number)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            right = False
        if right:
            outcome.latencies_s.append(time.perf_counter() - intended)
        else:
            outcome.failed += 1

    for number, offset in enumerate(schedule(rate, seconds)):
        intended = begin + offset
        wait = intended - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        if len(running) >= most_waiting:
            outcome.failed += 1
            continue
        task = asyncio.create_task(one(number, intended))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        await asyncio.wait(set(running))
    outcome.seconds = time.perf_counter() - begin
    return outcome


async def until(over: threading.Event, rate: float, one: Callable[[int, float], Awaitable[None]]) -> float:
    """Begin `one(number, intended)` at the rate until `over` is set, then wait for what is under way.

    `intended` is of the monotonic clock. Returns the seconds that the generator itself was late at worst.
    """
    running: set[asyncio.Task[None]] = set()
    begin, number, behind_s = time.monotonic(), 0, 0.0
    while not over.is_set():
        intended = begin + number / rate
        if (wait := intended - time.monotonic()) > 0:
            # Short sleeps: the end is not to wait for a slow rate.
            await asyncio.sleep(min(wait, 0.2))
            continue
        behind_s = max(behind_s, -wait)
        task = asyncio.ensure_future(one(number, intended))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    if running:
        await asyncio.gather(*running)
    return behind_s
