"""What workers do besides jobs, one of them at a time and a bounded step each time."""

import asyncio
import itertools
import logging
import os
import time

from prometheus_client import Counter, Gauge

from devmentor.pbml.db import Connection, Database
from devmentor.pbml.index import CollectionDrift, Index
from devmentor.pbml.rebuild import AWAY, Progress, Rebuild, read_progress
from devmentor.pbml.reconcile import Reconciler
from devmentor.pbml.retention import Retention
from devmentor.pbml.settings import Settings
from devmentor.pbml.state import published
from devmentor.pbml.state.metrics import PRUNED
from devmentor.pbml.store import maintenance, points, removal

log = logging.getLogger(__name__)

TURNS = Counter("pbml_maintenance_turns", "Rounds of maintenance", ["result"])
INCOMPLETE = Gauge("pbml_index_incomplete", "1 while fetches do not rely on the index because it lost points")
REMAINING = Gauge("pbml_rebuild_remaining_points", "Points that a rebuild has still to write")
for _result in ("ok", "failed"):
    TURNS.labels(_result)

SWEPT = Counter("pbml_swept_deletions", "Deletions whose remains were removed without a job of their own")

_SWEEP = 500
_SWEEP_S = 30.0
_REBUILD_STEP_S = 60.0
_COUNT_EVERY_S = 60.0
_PRUNE_EVERY_S = 60.0
_CHANGES_KEPT_S = 900.0
"""After a failover replicas read what is left of the log once more: longer than one takes."""
_LOST_SHARE = 0.5
"""An index with less than this share of the live chunks lost its collection, whoever made the one that is there."""


class Maintenance:
    """The worker's second loop."""

    def __init__(self, settings: Settings, database: Database, index: Index) -> None:
        self._s = settings
        self._db = database
        self._index = index
        holder = f"{settings.replica}/{os.getpid()}"
        self._rebuild = Rebuild(database, index, holder, settings.rebuild_page)
        self._reconciler = Reconciler(database, index, holder, settings.reconcile_points)
        self._retention = Retention(settings, database, holder)
        self._count_at = self._prune_at = 0.0

    async def run(self) -> None:
        """Until cancelled. What is away is tried again in the next round."""
        while True:
            try:
                await self.turn()
                TURNS.labels("ok").inc()
            except AWAY as error:
                TURNS.labels("failed").inc()
                log.info("maintenance waits", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
            except Exception:
                TURNS.labels("failed").inc()
                log.exception("maintenance failed")
            await asyncio.sleep(self._s.maintenance_every_s)

    async def turn(self) -> None:
        """One round."""
        await self._look_at_index()
        progress, incomplete = await self._measure()
        if progress is not None and not progress.finished:
            await self._rebuild.advance(_REBUILD_STEP_S)
        elif self._s.reconcile_points and not incomplete:
            await self._reconciler.step()
        await self._retention.step()
        await self._sweep()
        await self._prune_changes()

    async def _look_at_index(self) -> None:
        """Notice a lost collection, also where somebody has made it anew, and have it filled from the ledger."""
        lost = await self._index.lost()
        if not lost and time.monotonic() < self._count_at:
            return
        async with self._db.read(timeout_s=60) as c:
            expected = await points.live_points(c)
            incomplete = await maintenance.index_incomplete(c)
        if lost:
            # Before the collection is there: empty, it would answer that nothing is known.
            await self._rebuild.want("the collection was lost", incomplete=expected > 0)
            try:
                done = await self._index.ensure()
            except CollectionDrift as drift:
                log.error("collection made by somebody else", extra={"reason": str(drift)})
            else:
                log.warning("collection made anew", extra={"done": done, "live_chunks": expected})
        elif expected and not incomplete and (found := await self._index.count()) < expected * _LOST_SHARE:
            log.error("most points are gone", extra={"points": found, "live_chunks": expected})
            await self._rebuild.want(f"{found} points of {expected} were left", incomplete=True)
        self._count_at = time.monotonic() + _COUNT_EVERY_S

    async def _sweep(self) -> None:
        """Remove what is left of deletions that no job runs for: those of whole conversations."""
        until = time.monotonic() + _SWEEP_S
        while time.monotonic() < until:
            async with self._db.read(timeout_s=30) as c:
                found = await removal.unfinished(c, _SWEEP)
            await self._remove(found)
            if len(found) < _SWEEP:
                break

    async def _prune_changes(self) -> None:
        """Forget changes that every replica's state has, or that are too old to be waited for."""
        if time.monotonic() < self._prune_at:
            return
        done = await self._db.write(lambda c: published.prune(c, _CHANGES_KEPT_S, self._s.state_log_hours * 3600))
        PRUNED.inc(done.value)
        if done.value < published.PRUNE_BATCH:
            self._prune_at = time.monotonic() + _PRUNE_EVERY_S

    async def _remove(self, found: list[tuple[str, str, int]]) -> None:
        for tenant, group in itertools.groupby(found, key=lambda deletion: deletion[0]):
            deletions = list(group)
            # A turn's id is never used again, so that all of its points are the deleted ones.
            turns = [document for _tenant, document, _version in deletions if document.startswith("~")]
            if turns:
                await self._index.remove_documents(tenant, turns)
            for _tenant, document, version in deletions:
                if not document.startswith("~"):
                    await self._index.remove(tenant, document, version)
            ids = [document for _tenant, document, _version in deletions]

            async def work(c: Connection, tenant: str = tenant, ids: list[str] = ids) -> None:
                await removal.drop_deleted(c, tenant, ids)

            await self._db.write(work, timeout_s=60)
            SWEPT.inc(len(deletions))

    async def _measure(self) -> tuple[Progress | None, bool]:
        async with self._db.read() as c:
            task = await maintenance.look(c, "rebuild")
        progress = read_progress(task.state)
        INCOMPLETE.set(task.incomplete)
        unfinished = progress is not None and not progress.finished
        REMAINING.set(max(1, progress.total - progress.done) if progress is not None and unfinished else 0)
        return progress, task.incomplete
