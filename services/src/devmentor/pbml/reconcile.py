"""Finds where Qdrant differs from the ledger, a bounded number of points at a time, and mends it.

Two walks that begin again at their ends: over the chunks of live versions, whose points must be there, and over the
points, whose version must be live or on its way. Both end in calls that may be made twice.
"""

import logging
from typing import Any

from prometheus_client import Counter

from devmentor.pbml.db import Database
from devmentor.pbml.index import Index, point_id
from devmentor.pbml.rebuild import point_of
from devmentor.pbml.store import maintenance, points

log = logging.getLogger(__name__)

MENDED = Counter("pbml_reconciled_points", "Points that differed from the ledger and were mended", ["difference"])
COMPARED = Counter("pbml_compared_points", "Points compared with the ledger", ["walk"])
PASSES = Counter("pbml_reconcile_passes", "Walks that came to their end", ["walk"])
for _difference in ("missing", "orphan"):
    MENDED.labels(_difference)

_LEASE_S = 60.0


class Reconciler:
    """One step at a time, by one worker at a time; where it is stands in the ledger."""

    def __init__(self, database: Database, index: Index, holder: str, limit: int) -> None:
        self._db = database
        self._index = index
        self._holder = holder
        self._limit = limit

    async def step(self) -> bool:
        """Both walks go on by `limit`. False where another worker is at it."""
        task = (await self._db.write(lambda c: maintenance.claim(c, "reconcile", self._holder, _LEASE_S))).value
        if task is None:
            return False
        chunk = task.state.get("chunk")
        state: dict[str, Any] = {
            "chunk": await self._find_missing(tuple(chunk) if chunk is not None else points.FIRST),
            "point": await self._find_orphans(task.state.get("point")),
        }
        await self._db.write(lambda c: maintenance.keep(c, "reconcile", self._holder, state, _LEASE_S))
        return True

    async def _find_missing(self, after: points.Key) -> points.Key | None:
        async with self._db.read(timeout_s=30) as c:
            page, following = await points.live_page(c, after, self._limit)
        COMPARED.labels("ledger").inc(len(page))
        if following is None:
            PASSES.labels("ledger").inc()
        wanted = {point_id(*key): key for key in page}
        present = await self._index.present(list(wanted)) if wanted else set()
        missing = [key for name, key in wanted.items() if name not in present]
        if missing:
            # Read again: what was deleted meanwhile must not come back.
            async with self._db.read(timeout_s=30) as c:
                chunks = await points.wanted_chunks(c, missing)
            await self._index.upsert([point_of(chunk) for chunk in chunks])
            MENDED.labels("missing").inc(len(chunks))
            log.warning("points were missing", extra={"points": len(chunks), "first": list(missing[0])})
        return following

    async def _find_orphans(self, after: str | None) -> str | None:
        stored, following = await self._index.scroll(after, self._limit)
        COMPARED.labels("index").inc(len(stored))
        if following is None:
            PASSES.labels("index").inc()
        of = {(point.tenant, point.document_id, point.version) for point in stored}
        if of:
            async with self._db.read(timeout_s=30) as c:
                wanted = await points.wanted_versions(c, sorted(of))
            orphans = [p.id for p in stored if (p.tenant, p.document_id, p.version) not in wanted]
            if orphans:
                await self._index.remove_points(orphans)
                MENDED.labels("orphan").inc(len(orphans))
                log.warning("points of what is not live removed", extra={"points": len(orphans)})
        return following
