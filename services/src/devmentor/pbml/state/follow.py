"""Keeps the state: loads it, follows the ledger, compares, publishes what it has, writes checkpoints. In the worker."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from devmentor.pbml.db import Connection, Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.settings import Settings
from devmentor.pbml.state import metrics, place, published, source
from devmentor.pbml.state.compare import Walk
from devmentor.pbml.state.copies import Copies
from devmentor.pbml.state.entry import Key
from devmentor.pbml.state.file import StateFile, StateUnreadable
from devmentor.pbml.state.files import Files
from devmentor.pbml.state.load import Loader
from devmentor.pbml.state.source import Changes, View

log = logging.getLogger(__name__)

_SEVERAL = 500
"""Documents, and"""
_CHUNKS = 4000
"""chunks, that are read and written in one transaction."""
_MOST_CHANGES = 200_000
"""Above, reading all anew is no more work."""
_READ_S = 120.0
_FAULT_PAUSE_S = 5.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WALK_AGAIN_S = 60.0

T = TypeVar("T")


class Follower:
    """One replica's. Its file is touched by one thread; only a checkpoint's copy reads it from another."""

    def __init__(self, settings: Settings, database: Database, directory: Path) -> None:
        self._s = settings
        self._db = database
        self.files = Files(directory)
        self.copies = Copies(directory / place.CHECKPOINTS, settings.state_checkpoint_s, settings.state_checkpoints)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self.file: StateFile | None = None
        self._new = True
        self._began = time.monotonic()
        self._exact: View | None = None
        self._synced: float | None = None
        self._published_at = self._compared_at = 0.0
        self._walk = Walk(settings.state_compare_documents)
        self._suspected: dict[str, float] = {}
        metrics.BEHIND.set_function(lambda: time.monotonic() - (self._synced or self._began))

    async def run(self) -> None:
        """Until cancelled. What is away is tried again."""
        try:
            while True:
                pause = await self.round()
                await asyncio.sleep(pause)
        finally:
            await self.close()

    async def round(self) -> float:
        """A turn, whatever comes of it; seconds until the next one."""
        try:
            return 0.0 if await self.turn() else self._s.state_poll_s
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            metrics.FAILURES.labels("away").inc()
            log.info("state waits for PostgreSQL", extra={"reason": str(error)[:300]})
            return self._s.state_poll_s
        except Exception as error:
            metrics.FAILURES.labels("fault").inc()
            log.exception("state: a round failed")
            if self.file is not None and _damaged(error):
                await self._use(partial(self.files.instead_of, self.file))
        return _FAULT_PAUSE_S

    async def turn(self) -> bool:
        """One round; whether the next one should follow at once."""
        file = self.file
        if file is None:
            file = await self._use(self.files.open)
        if await self._in_thread(partial(file.meta, "loaded")) is None:
            return await self._load(file)
        metrics.READY.set(1)
        more = await self._follow(file)
        if self.file is file and self._exact is not None:
            await self._publish(file, self._exact)
            self.copies.begin(file)
        return more

    async def _anew(self, file: StateFile, reason: str) -> None:
        """What is here does not lead to what PostgreSQL has: load all of it."""
        log.warning("the state is loaded anew", extra={"reason": reason})
        metrics.LOADS.labels(reason).inc()
        await self._use(partial(self.files.empty, file))

    async def _use(self, make: Callable[[], StateFile]) -> StateFile:
        """Another file, and nothing of what was known of the one before."""
        self._exact, self._began, self._new = None, time.monotonic(), True
        self._walk.stop()
        metrics.READY.set(0)
        self.file = await self._in_thread(make)
        return self.file

    # What is in it

    async def _load(self, file: StateFile) -> bool:
        async with self._db.read(timeout_s=_READ_S) as c:
            await source.steady(c)
            view = await source.look(c)
            loader = Loader(file, self._in_thread, _SEVERAL, _CHUNKS)
            since = await self._in_thread(partial(file.meta, "snapshot"))
            if since is None:
                metrics.LOADS.labels("empty").inc()
                await loader.begin(view)
                since = view.snapshot
            elif (reason := await self._lost(file, view)) is not None:
                await self._anew(file, reason)
                return True
            done = await loader.page(c)
        # Keeps what changed since the beginning in the log.
        if time.monotonic() - self._published_at >= self._s.state_publish_s:
            await self._db.write(
                partial(published.publish, replica=self._s.replica, view=view, since=since, digests=None)
            )
            self._published_at = time.monotonic()
        if done:
            log.info("state loaded", extra={"seconds": round(time.monotonic() - self._began, 1)})
        return True

    async def _lost(self, file: StateFile, view: View) -> str | None:
        """Why what is in the file can not be followed from; None where it can."""
        snapshot, cluster, timeline = await self._in_thread(
            lambda: (file.meta("snapshot"), file.meta("cluster"), file.meta("timeline"))
        )
        if snapshot is None or cluster != view.cluster:
            return "another ledger"
        try:
            xmin, xmax = source.bounds(snapshot)
        except ValueError:
            return "no position"
        if xmax > view.xmax and timeline == view.timeline:
            return "transactions went back"
        if view.pruned > xmin:
            return "away for too long"
        return None

    async def _follow(self, file: StateFile) -> bool:
        """Everything that PostgreSQL has now; whether there is more to do at once."""
        started = time.monotonic()
        async with self._db.read(timeout_s=_READ_S) as c:
            await source.steady(c)
            view = await source.look(c)
            if (reason := await self._lost(file, view)) is not None:
                await self._anew(file, reason)
                return True
            since, timeline = await self._in_thread(lambda: (file.meta("snapshot"), file.meta("timeline")))
            if timeline != view.timeline:
                # Numbers of transactions that the old primary alone had may have been given again: read the whole log.
                # What only such a transaction had is in no log; the walk finds it.
                log.warning("PostgreSQL failed over", extra={"from": timeline, "to": view.timeline})
                since = source.BEFORE_ALL
                self._walk.begin(None)
            changes = await source.changed(c, since or source.BEFORE_ALL, _MOST_CHANGES)
            if not changes.whole:
                await self._anew(file, "too many changes")
                return True
            groups = grouped(changes.documents, await source.sizes(c, changes.documents))
            if len(groups) <= 1:
                await self._apply(c, file, changes, changes.documents, view)
                self._exact, self._synced = view, started
                return await self._compare(c, file)
        self._exact = None
        await self._catch_up(file, changes, groups, view)
        return True

    async def _catch_up(self, file: StateFile, changes: Changes, groups: list[list[Key]], view: View) -> None:
        """Many changes, each group as it is by now. What changed since the view is read once more by the next round, so
        that its end is one state of the ledger again."""
        nothing = Changes([], [], [], True)
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            async with self._db.read(timeout_s=_READ_S) as c:
                await source.steady(c)
                await self._apply(c, file, changes if last else nothing, group, view if last else None)

    async def _apply(
        self, c: Connection, file: StateFile, changes: Changes, documents: list[Key], view: View | None
    ) -> None:
        known = await self._in_thread(partial(file.known, documents))
        entries = await source.entries(c, documents, known)
        pins = await source.pins(c, changes.pins)
        exact = view is not None and documents == changes.documents

        def work() -> None:
            with file.writing():
                file.apply(entries)
                file.set_pins(pins)
                file.add_seqs(changes.seqs)
                if view is None:
                    file.note(position=None)
                else:
                    place_in_log(file, view, exact=exact)

        await self._in_thread(work)
        metrics.CHANGES.inc(len(documents))

    async def _compare(self, c: Connection, file: StateFile) -> bool:
        """A page of the walk, where one is due; whether it is urgent."""
        if not self._walk.urgent and time.monotonic() - self._compared_at < self._s.state_compare_s:
            return False
        self._compared_at = time.monotonic()
        await self._walk.page(c, file, self._in_thread, _CHUNKS)
        return self._walk.urgent

    # What others learn of it

    async def _publish(self, file: StateFile, view: View) -> None:
        now = time.monotonic()
        if now - self._published_at < self._s.state_publish_s:
            return
        self._published_at = now
        self._measure(file, view, await self._in_thread(file.documents))
        digests = await self._in_thread(file.digests) if view.settled and not self._walk.urgent else None

        async def work(c: Connection) -> dict[str, dict[str, str]]:
            await published.publish(c, self._s.replica, view, view.snapshot, digests)
            return await published.others(c, self._s.replica, view) if digests is not None else {}

        others = (await self._db.write(work)).value
        differ = {
            tenant
            for theirs in others.values()
            for tenant in {*theirs, *(digests or {})}
            if theirs.get(tenant) != (digests or {}).get(tenant)
        }
        # Which of them is wrong PostgreSQL knows; each of them asks.
        fresh = [
            tenant for tenant in sorted(differ) if now - self._suspected.get(tenant, -_WALK_AGAIN_S) >= _WALK_AGAIN_S
        ]
        for tenant in fresh:
            metrics.MISMATCHES.labels("replica").inc()
            self._suspected[tenant] = now
            log.error("digest differs from another replica's", extra={"tenant": tenant, "position": view.position})
        if fresh:
            self._walk.begin(fresh)

    def _measure(self, file: StateFile, view: View, documents: int) -> None:
        metrics.POSITION.set(view.position)
        metrics.DOCUMENTS.set(documents)
        metrics.BYTES.set(sum(path.stat().st_size for path in file.path.parent.iterdir()))
        if self._new:
            metrics.STARTED.labels(self.files.origin).set(time.monotonic() - self._began)
            self._new = False

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Stop writing."""
        await self.copies.stop()
        self._thread.shutdown(wait=True)
        if self.file is not None:
            self.file.close()


def _damaged(error: Exception) -> bool:
    """Whether it says that the file is; not that the disk is full, say."""
    if isinstance(error, sqlite3.DatabaseError):
        return error.sqlite_errorcode & 0xFF in _DAMAGED
    return isinstance(error, StateUnreadable)


def place_in_log(file: StateFile, view: View, *, exact: bool) -> None:
    """Note what the state stands for. Its position only where the state is exactly what is there. Inside `writing`."""
    file.note(
        snapshot=view.snapshot,
        cluster=view.cluster,
        timeline=view.timeline,
        position=str(view.position) if exact and view.settled else None,
        at=str(time.time()),
    )


def grouped(keys: list[Key], sizes: dict[Key, int]) -> list[list[Key]]:
    """Keys in groups of bounded documents and chunks; a larger document is alone."""
    groups: list[list[Key]] = []
    chunks = 0
    for key in keys:
        size = sizes.get(key, 0)
        if not groups or len(groups[-1]) >= _SEVERAL or chunks + size > _CHUNKS:
            groups.append([])
            chunks = 0
        groups[-1].append(key)
        chunks += size
    return groups
