"""The pool of an engine: so many requests at a time, the others wait in order, but not for ever."""

import asyncio
import math
import time

from devmentor.common.errors import ApiError
from devmentor.qwen import metrics


class Pool:
    """`acquire` and `release` a slot. Waiters are served in the order they came."""

    def __init__(self, name: str, size: int, wait_s: float) -> None:
        self._name = name
        self._size = size
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(size)
        self._in_use = 0
        self._waiting = 0
        self._held_s = 1.0
        metrics.POOL_SIZE.labels(name).set(size)
        self._in_use_gauge = metrics.POOL_IN_USE.labels(name)
        self._waiting_gauge = metrics.POOL_WAITING.labels(name)

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def waiting(self) -> int:
        return self._waiting

    async def acquire(self) -> float:
        """Wait for a slot and return the time it was given. Raises ApiError (429) where none comes in time."""
        if self._slots.locked():
            self._waiting += 1
            self._waiting_gauge.set(self._waiting)
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._slots.acquire()
            except TimeoutError:
                raise self._refusal() from None
            finally:
                self._waiting -= 1
                self._waiting_gauge.set(self._waiting)
        else:
            await self._slots.acquire()  # does not wait: nobody else runs in between
        self._in_use += 1
        self._in_use_gauge.set(self._in_use)
        return time.monotonic()

    def release(self, since: float) -> None:
        """Give the slot back; `since` is what `acquire` returned."""
        self._held_s += 0.1 * (time.monotonic() - since - self._held_s)
        self._in_use -= 1
        self._in_use_gauge.set(self._in_use)
        self._slots.release()

    def _refusal(self) -> ApiError:
        # 429, not 503: the gateway counts a 5xx as an error and would eject a healthy server.
        metrics.POOL_REFUSED.labels(self._name).inc()
        queue_s = self._held_s * max(1, self._waiting) / self._size
        return ApiError(
            429,
            "engine_busy",
            f"all {self._size} connections to the engine of {self._name} were busy for {self._wait_s:g} s",
            headers={"Retry-After": str(min(60, max(1, math.ceil(queue_s))))},
        )
