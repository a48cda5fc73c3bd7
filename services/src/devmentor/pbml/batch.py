"""Batch manager: texts of many documents share calls of the embeddings endpoint."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from prometheus_client import Gauge, Histogram

from devmentor.common import tasks
from devmentor.pbml.embedder import TextRefused, Vector

BATCH_SIZE = Histogram("pbml_embedding_batch_size", "Texts in one call", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
WAITING = Gauge("pbml_embedding_waiting", "Texts that wait for a batch")


@dataclass(slots=True)
class _Item:
    text: str
    result: asyncio.Future[Vector]


class BatchManager:
    """Collects texts until a batch is full or old enough; at most `in_flight` batches run at a time.

    The queue is bounded: a caller with more texts than the endpoint can take waits, and with it the
    job that it serves, and with that the queue in PostgreSQL, which is the place where work may pile up.
    """

    def __init__(
        self,
        embed: Callable[[Sequence[str]], Awaitable[list[Vector]]],
        *,
        max_size: int,
        max_age_s: float,
        in_flight: int = 2,
    ) -> None:
        self._embed = embed
        self._max_size = max_size
        self._max_age_s = max_age_s
        self._slots = asyncio.Semaphore(in_flight)
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(maxsize=max_size * 4)
        self._calls: set[asyncio.Task[None]] = set()
        self._collector: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start collecting."""
        self._collector = asyncio.create_task(self._collect(), name="batch-manager")

    async def close(self) -> None:
        """Stop; texts that still wait get a CancelledError."""
        await tasks.end(self._collector)
        await tasks.end(*self._calls)
        while not self._queue.empty():
            self._queue.get_nowait().result.cancel()

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector a text, in order; the first error of any of them is raised."""
        loop = asyncio.get_running_loop()
        items = [_Item(text, loop.create_future()) for text in texts]
        try:
            for item in items:
                await self._queue.put(item)
                WAITING.set(self._queue.qsize())
            return list(await asyncio.gather(*(item.result for item in items)))
        finally:
            for item in items:
                item.result.cancel()

    async def _collect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            deadline = loop.time() + self._max_age_s
            while len(batch) < self._max_size:
                try:
                    async with asyncio.timeout_at(deadline):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    break
            WAITING.set(self._queue.qsize())
            batch = [item for item in batch if not item.result.done()]
            if not batch:
                continue
            await self._slots.acquire()
            call = asyncio.create_task(self._run(batch))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _run(self, batch: list[_Item]) -> None:
        try:
            BATCH_SIZE.observe(len(batch))
            vectors = await self._embed([item.text for item in batch])
            for item, vector in zip(batch, vectors, strict=True):
                if not item.result.done():
                    item.result.set_result(vector)
        except Exception as error:
            await self._settle_failure(batch, error)
        finally:
            for item in batch:
                item.result.cancel()
            self._slots.release()

    async def _settle_failure(self, batch: list[_Item], error: Exception) -> None:
        """A refused text must not fail the documents that shared its batch: each is asked for alone."""
        for item in batch:
            if item.result.done():
                continue
            if not isinstance(error, TextRefused) or len(batch) == 1:
                item.result.set_exception(error)
                continue
            try:
                vector = (await self._embed([item.text]))[0]
            except Exception as own:
                if not item.result.done():
                    item.result.set_exception(own)
            else:
                if not item.result.done():  # its caller may have left during the call
                    item.result.set_result(vector)
