"""Qdrant from PostgreSQL: every chunk that the ledger calls live is written again, with the vector kept there.

In place, page by page in the order of the chunks' key. How far it is stands in the ledger with each page, so another
process goes on where a killed one was. The pipeline writes new points meanwhile as ever. Where the index had lost
points, fetches do not rely on it (`maintenance.incomplete`) until the last page is written.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from prometheus_client import Counter

from devmentor.pbml.db import Connection, Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.index import Index, IndexUnavailable, Point
from devmentor.pbml.store import maintenance, points
from devmentor.pbml.store.points import Key, WantedChunk

log = logging.getLogger(__name__)

REBUILT = Counter("pbml_rebuilt_points", "Points written again by a rebuild")

LEASE_S = 60.0
_WRITERS = 4
_BATCH = 256
_ENOUGH = 0.9
"""Share of the live chunks that a whole index must have: their number is not read at the same moment as the points'."""

AWAY = (DatabaseUnavailable, OutcomeUnknown, IndexUnavailable)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is. `cursor` is None where there is nothing (more) to do; `seconds` without pauses."""

    reason: str
    cursor: Key | None
    done: int
    total: int
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.cursor is None

    @property
    def rate(self) -> float:
        """Points a second."""
        return self.done / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """For the operator: counts, rate, what remains. The total was counted at the start and may have grown."""
        total = max(self.total, self.done)
        left = (total - self.done) / self.rate if self.rate else 0.0
        share = 100 * self.done / total if total else 100.0
        return f"{self.done} of {total} points ({share:.1f} %), {self.rate:.0f}/s, {left:.0f} s left"


def read_progress(state: dict[str, Any]) -> Progress | None:
    """The rebuild that the ledger knows of, finished or not; None where there never was one."""
    if not state:
        return None
    cursor = state["cursor"]
    return Progress(**{**state, "cursor": tuple(cursor) if cursor is not None else None})


class Rebuild:
    """One rebuild at a time in the whole platform, by a lease in the ledger."""

    def __init__(self, database: Database, index: Index, holder: str, page: int) -> None:
        self._db = database
        self._index = index
        self._holder = holder
        self._page = page

    async def want(self, reason: str, *, incomplete: bool) -> None:
        """A rebuild is to be done from its beginning; `incomplete`: fetches must not rely on the index until then."""
        async with self._db.read(timeout_s=60) as c:
            total = await points.live_points(c)
        state = asdict(Progress(reason, points.FIRST, 0, total, 0.0))
        await self._db.write(lambda c: maintenance.want_rebuild(c, state, incomplete=incomplete))

    async def progress(self) -> tuple[Progress | None, str | None]:
        """How far it is, and who is at it."""
        async with self._db.read() as c:
            task = await maintenance.look(c, "rebuild")
        return read_progress(task.state), task.holder if task.held_s > 0 else None

    async def advance(self, seconds: float, report: Callable[[Progress], None] = lambda _: None) -> Progress | None:
        """Go on with the rebuild that is wanted, for about `seconds`. None where another process is at it.

        Errors of PostgreSQL and Qdrant are the caller's to wait out: nothing that was reported is lost.
        """
        claimed = (await self._db.write(lambda c: maintenance.claim(c, "rebuild", self._holder, LEASE_S))).value
        if claimed is None:
            return None
        progress, until = read_progress(claimed.state), time.monotonic() + seconds
        if progress is None:
            progress = Progress("", None, 0, 0, 0.0)
        while not progress.finished and time.monotonic() < until:
            moved = await self._write_page(progress)
            if moved is None:
                return None
            progress = moved
            report(progress)
        await self._db.write(lambda c: maintenance.release(c, "rebuild", self._holder))
        return progress

    async def _write_page(self, progress: Progress) -> Progress | None:
        assert progress.cursor is not None
        start = time.monotonic()
        async with self._db.read(timeout_s=60) as c:
            page, following = await points.wanted_page(c, progress.cursor, self._page)
        await self._upsert(page)
        progress = replace(
            progress,
            cursor=following,
            done=progress.done + len(page),
            seconds=progress.seconds + time.monotonic() - start,
        )
        if progress.finished:
            progress = await self._checked(progress)
        state = asdict(progress)

        async def save(c: Connection) -> bool:
            if progress.finished:
                return await maintenance.finish_rebuild(c, self._holder, state)
            return await maintenance.keep(c, "rebuild", self._holder, state, LEASE_S)

        return progress if (await self._db.write(save)).value else None

    async def _upsert(self, page: list[WantedChunk]) -> None:
        slots = asyncio.Semaphore(_WRITERS)

        async def write(batch: list[WantedChunk]) -> None:
            async with slots:
                await self._index.upsert([point_of(chunk) for chunk in batch])

        batches = [write(page[first : first + _BATCH]) for first in range(0, len(page), _BATCH)]
        for outcome in await asyncio.gather(*batches, return_exceptions=True):
            if outcome is not None:
                raise outcome
        REBUILT.inc(len(page))

    async def _checked(self, progress: Progress) -> Progress:
        """A collection that was emptied under the rebuild is filled from the beginning."""
        async with self._db.read(timeout_s=60) as c:
            expected = await points.live_points(c)
        found = await self._index.count()
        if found >= expected * _ENOUGH:
            return progress
        log.error("rebuild starts over: points are gone", extra={"points": found, "live_chunks": expected})
        return Progress(progress.reason, points.FIRST, 0, expected, 0.0)


def point_of(chunk: WantedChunk) -> Point:
    """The point of a chunk."""
    tenant, document_id, version, number = chunk.key
    return Point(tenant, document_id, version, number, chunk.conversation_id, chunk.vector)
