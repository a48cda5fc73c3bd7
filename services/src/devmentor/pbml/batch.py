"""Batch manager: what many documents ask for at the same moment is asked for in one call."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import Gauge, Histogram

from devmentor.common import tasks

BATCH_SIZE = Histogram(
    "pbml_batch_size",
    "Items in one call: texts, versions or documents",
    ["call"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
WAITING = Gauge("pbml_batch_waiting", "Items that wait for a call", ["call"])

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    result: asyncio.Future[Result]


class BatchManager(Generic[Item, Result]):
    """At most `in_flight` calls at a time, each with what came until it could begin, `max_size` items at most.

    A call that is not full begins `max_age_s` after it could. `own_fault` says of a call's error whether one of its
    items may be to blame: then each is asked for alone, so that none fails for another's fault.

    Who waits is bounded: a caller with more items than that waits, and with it the job that it serves, and with
    that the queue in PostgreSQL, which is the place where work may pile up.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Sequence[Item]], Awaitable[list[Result]]],
        *,
        own_fault: Callable[[Exception], bool],
        max_size: int,
        max_age_s: float = 0.0,
        in_flight: int = 1,
    ) -> None:
        self._name = name
        self._call = call
        self._own_fault = own_fault
        self._max_size = max_size
        self._max_age_s = max_age_s
        self._in_flight = in_flight
        self._queue: deque[_Waiting[Item, Result]] = deque()
        # Asked for one by one, in turn: a caller with many items does not hold up one that has few.
        self._room = asyncio.Semaphore(max_size * 4)
        self._full = asyncio.Event()
        self._callers: set[asyncio.Task[None]] = set()
        self._calling = 0
        self._closed = False

    async def close(self) -> None:
        """Stop; items that still wait get a CancelledError."""
        self._closed = True
        await tasks.end(*self._callers)
        while self._queue:
            self._queue.popleft().result.cancel()
            self._room.release()

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """One result an item, in order; the first error of any of them is raised."""
        loop = asyncio.get_running_loop()
        given: list[_Waiting[Item, Result]] = [_Waiting(item, loop.create_future()) for item in items]
        try:
            for each in given:
                await self._room.acquire()
                if self._closed:
                    self._room.release()
                    raise asyncio.CancelledError
                self._queue.append(each)
                if len(self._queue) >= self._max_size:
                    self._full.set()
                if self._calling < self._in_flight:
                    self._calling += 1
                    caller = asyncio.create_task(self._go_on(), name=f"batches: {self._name}")
                    self._callers.add(caller)
                    caller.add_done_callback(self._callers.discard)
            WAITING.labels(self._name).set(len(self._queue))
            return list(await asyncio.gather(*(each.result for each in given)))
        finally:
            for each in given:
                each.result.cancel()

    async def _go_on(self) -> None:
        """One call after the other for as long as something waits."""
        try:
            while self._queue:
                if len(self._queue) < self._max_size and self._max_age_s > 0:
                    self._full.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._max_age_s):
                            await self._full.wait()
                batch: list[_Waiting[Item, Result]] = []
                while self._queue and len(batch) < self._max_size:
                    each = self._queue.popleft()
                    self._room.release()
                    if not each.result.done():
                        batch.append(each)
                WAITING.labels(self._name).set(len(self._queue))
                if batch:
                    await self._run(batch)
        finally:
            self._calling -= 1  # nothing came in since the queue was seen empty

    async def _run(self, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            BATCH_SIZE.labels(self._name).observe(len(batch))
            results = await self._call([each.item for each in batch])
            for each, result in zip(batch, results, strict=True):
                if not each.result.done():
                    each.result.set_result(result)
        except Exception as error:
            await self._settle_failure(batch, error)
        finally:
            for each in batch:
                each.result.cancel()

    async def _settle_failure(self, batch: list[_Waiting[Item, Result]], error: Exception) -> None:
        for each in batch:
            if each.result.done():
                continue
            if len(batch) == 1 or not self._own_fault(error):
                each.result.set_exception(error)
                continue
            try:
                result = (await self._call([each.item]))[0]
            except Exception as own:
                if not each.result.done():
                    each.result.set_exception(own)
                if not self._own_fault(own):
                    error = own  # and of all that are left
            else:
                if not each.result.done():  # its caller may have left during the call
                    each.result.set_result(result)
