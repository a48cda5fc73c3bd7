"""The pool of an engine: so many requests at a time, the others wait in order, but not for longer than they may.

Who would wait longer than it may is refused at once, by an estimate. With `c` slots, all taken, each held for `S`
seconds on average, slots come free at a rate of c / S (Little's law, L = lambda W, with L = c in service and W = S:
J. D. C. Little, "A Proof for the Queuing Formula: L = lambda W", Operations Research 9 (1961) 383-387). Who comes as
number k in the queue waits for k of them:

    wait = k * S / c        S = max(moving average of the times slots were held, mean age of those held now)

The second term counts what is not over yet: an engine that hangs gives no slot back, and the average alone would stay
low. In a steady state the mean age is E[S^2] / 2 E[S]: the mean itself where times are exponential, half of it where
they are all equal. Nobody is refused while a slot is free, so an average from bad times is always measured anew.
"""

import asyncio
import math
import time
from collections.abc import Callable

from devmentor.common.errors import ApiError
from devmentor.qwen import metrics

_WEIGHT = 0.1  # of the latest time in the moving average


class Pool:
    """`acquire` and `release` a slot. Waiters are served in the order they came."""

    def __init__(self, name: str, size: int, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._size = size
        self._wait_s = wait_s
        self._clock = clock
        self._slots = asyncio.Semaphore(size)
        self._in_use = 0
        self._waiting = 0
        self._held_s: float | None = None  # until the first slot is given back
        self._since_sum = 0.0
        metrics.POOL_SIZE.labels(name).set(size)
        self._in_use_gauge = metrics.POOL_IN_USE.labels(name)
        self._waiting_gauge = metrics.POOL_WAITING.labels(name)
        self._wait_seconds = metrics.POOL_WAIT_SECONDS.labels(name)

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def expected_wait_s(self) -> float:
        """How long one more request would wait for its turn."""
        if not self._slots.locked():
            return 0.0
        age = self._clock() - self._since_sum / self._in_use if self._in_use else 0.0
        return (self._waiting + 1) * max(self._held_s or 0.0, age) / self._size

    async def acquire(self, wait_s: float | None = None) -> float:
        """Wait for a slot and return the time it was given.

        Raises ApiError (429) where none comes within `wait_s` (seconds; None: the pool's own limit), at once where none
        is expected to.
        """
        limit = self._wait_s if wait_s is None else wait_s
        came = self._clock()
        if self._slots.locked():
            if self.expected_wait_s > limit:
                raise self._refusal("expected", limit)
            self._waiting += 1
            self._waiting_gauge.set(self._waiting)
            try:
                async with asyncio.timeout(limit):
                    await self._slots.acquire()
            except TimeoutError:
                raise self._refusal("waited", limit) from None
            finally:
                self._waiting -= 1
                self._waiting_gauge.set(self._waiting)
        else:
            await self._slots.acquire()  # does not wait: nobody else runs in between
        since = self._clock()
        self._in_use += 1
        self._since_sum += since
        self._in_use_gauge.set(self._in_use)
        self._wait_seconds.observe(since - came)
        return since

    def release(self, since: float) -> None:
        """Give the slot back; `since` is what `acquire` returned."""
        held = self._clock() - since
        self._held_s = held if self._held_s is None else self._held_s + _WEIGHT * (held - self._held_s)
        self._in_use -= 1
        self._since_sum = self._since_sum - since if self._in_use else 0.0
        self._in_use_gauge.set(self._in_use)
        self._slots.release()

    def _refusal(self, reason: str, limit: float) -> ApiError:
        # 429, not 503: the gateway counts a 5xx as an error and would eject a healthy server.
        metrics.POOL_REFUSED.labels(self._name, reason).inc()
        expected = self.expected_wait_s
        told = f"about {expected:.1f} s are expected" if reason == "expected" else "it was in vain"
        return ApiError(
            429,
            "engine_busy",
            f"all {self._size} connections to the engine of {self._name} are busy; {limit:.3g} s to wait, {told}",
            headers={"Retry-After": str(min(60, max(1, math.ceil(expected - limit))))},
        )
