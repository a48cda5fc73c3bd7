"""The spool in the API process: what is in it, which writes must go through it, and one fsync for many of them."""

import asyncio
import logging
import shutil
import time
from collections import Counter as Tally
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from devmentor.pbml.spool import metrics
from devmentor.pbml.spool.entry import Entry, Lane, RecordDamaged, decode, microseconds, spooled_response
from devmentor.pbml.spool.store import SpoolFull, SpoolUnusable, Store
from devmentor.pbml.store.idempotency import KeyReused

log = logging.getLogger(__name__)

T = TypeVar("T")

_OVERHEAD = 512
"""Bytes of a row beside its record: keys, checksum, a page's unused end."""


@dataclass(slots=True, eq=False)
class Kept:
    """What is known of an entry without its text. `durable`: its fsync is done. `replayed`: PostgreSQL has it."""

    entry_id: str
    lane: Lane
    kind: str
    tenant: str
    document_id: str
    watermark: str
    key: str | None
    request_sha256: str
    accepted_us: int
    size: int
    parked: str | None = None
    durable: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    replayed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def readable(self) -> bool:
        """Acknowledged, and not set aside."""
        return self.durable.done() and self.parked is None

    def response(self) -> dict[str, object]:
        """The acknowledgement's body."""
        return spooled_response(self.kind, self.watermark, self.document_id)


def _kept(entry: Entry, size: int) -> Kept:
    return Kept(
        entry.entry_id,
        entry.lane,
        entry.kind,
        entry.tenant,
        entry.document_id,
        entry.watermark,
        entry.key,
        entry.request_sha256,
        entry.accepted_us,
        size,
    )


class Spool:
    """One host's spool. All methods are called on the event loop; the file belongs to one thread of its own."""

    def __init__(self, directory: Path, *, max_bytes: int, min_free_bytes: int, clock_us: Callable[[], int]) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._clock_us = clock_us
        self._newest_us = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._store: Store | None = None
        self._entries: dict[str, Kept] = {}
        self._lanes: Tally[Lane] = Tally()
        self._by_key: dict[tuple[str, str], Kept] = {}
        self._bytes = 0
        self._waiting = 0
        self._appends: list[tuple[Kept, bytes]] = []
        self._removals: list[Kept] = []
        self._work = asyncio.Event()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None
        self.filled = asyncio.Event()
        self.away = False
        self.broken: str | None = "not open"

    # Life

    async def open(self) -> None:
        """Recover what is there. A directory that can not be used leaves a spool that takes nothing and says why."""
        metrics.watch(self)
        try:
            self._store = await self._in_thread(lambda: Store(self._directory))
            store = self._store
            for name, entry, size, parked in await self._in_thread(lambda: _summaries(store)):
                self._recover(name, entry, size, parked)
        except SpoolUnusable as error:
            self._break(str(error))
            return
        self.broken = None
        self._writer = asyncio.create_task(self._write(), name="spool-writer")
        if self._entries:
            log.warning("the spool has entries from before", extra={"entries": len(self._entries)})
            # Until one is replayed nobody knows whether PostgreSQL takes writes; the drainer asks at once.
            self.filled.set()

    async def close(self) -> None:
        """What was acknowledged stays for the next start."""
        if self._writer is not None:
            self._closing = True
            self._work.set()
            await self._writer
        if self._store is not None:
            await self._in_thread(self._store.close)
        self._thread.shutdown()

    # What others ask

    @property
    def usable(self) -> bool:
        """Whether it can take a write, if there is room."""
        return self.broken is None

    @property
    def waiting(self) -> int:
        """Entries that are to be replayed."""
        return self._waiting

    @property
    def parked(self) -> int:
        """Entries that are not replayed, for a reason of their own."""
        return len(self._entries) - self.waiting

    @property
    def size(self) -> int:
        """What is counted against the bound."""
        return self._bytes

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._max_bytes

    def oldest_s(self) -> float:
        """Age of the oldest entry that waits, 0 where none does."""
        ages = [kept.accepted_us for kept in self._entries.values() if kept.parked is None]
        return max(0.0, time.time() - min(ages) / 1e6) if ages else 0.0

    def holds(self, lane: Lane) -> bool:
        """Whether a write of this lane would overtake one that waits here."""
        return self._lanes[lane] > 0

    def must_take(self, lane: Lane) -> bool:
        """Whether a write has to go through the spool: its lane waits here, or PostgreSQL is known to be away."""
        return self.holds(lane) or (self.away and self.waiting > 0)

    def known(self, tenant: str, key: str | None, request_sha256: str) -> Kept | None:
        """The entry that an Idempotency-Key belongs to. Raises KeyReused where it is another request's."""
        kept = self._by_key.get((tenant, key)) if key is not None else None
        if kept is not None and kept.request_sha256 != request_sha256:
            raise KeyReused(key)
        return kept

    def find(self, entry_id: str) -> Kept | None:
        """An entry that is here."""
        return self._entries.get(entry_id)

    def waiting_until(self, last: Kept) -> list[Kept]:
        """The same tenant's entries that wait and were acknowledged no later than this one, newest first."""
        found = [
            kept
            for kept in self._entries.values()
            if kept.tenant == last.tenant and kept.readable and kept.accepted_us <= last.accepted_us
        ]
        return found[::-1]

    def saw(self, committed_at: datetime) -> None:
        """A commit of PostgreSQL, by its clock: what is accepted here later is later, whatever our clock says."""
        self._newest_us = max(self._newest_us, microseconds(committed_at))

    # Writing

    async def append(self, draft: Entry) -> Kept:
        """Durable on return, and acknowledged from then on. Raises SpoolFull, SpoolUnusable, KeyReused.

        An entry with the same Idempotency-Key and request is the same write: that one is returned.
        """
        if self.broken is not None:
            raise SpoolUnusable(self.broken)
        kept = self.known(draft.tenant, draft.key, draft.request_sha256)
        if kept is None:
            self._newest_us = max(self._clock_us(), self._newest_us + 1)
            entry = draft.accepted(self._newest_us)
            record = entry.encode()
            self._check_room(len(record) + _OVERHEAD)
            kept = _kept(entry, len(record) + _OVERHEAD)
            self._register(kept)
            self._appends.append((kept, record))
            self._work.set()
        # One client that goes away must not take the acknowledgement from another that waits for the same fsync.
        await asyncio.shield(kept.durable)
        return kept

    def _check_room(self, size: int) -> None:
        if self._bytes + size > self._max_bytes:
            raise SpoolFull(f"{self._bytes} of {self._max_bytes} bytes are taken")
        # The record is in the log and, after a checkpoint, in the file.
        free = shutil.disk_usage(self._directory).free
        if free < self._min_free_bytes + 2 * size:
            raise SpoolFull(f"{self._directory}: {free} bytes are free on the disk")

    def release(self, kept: Kept) -> None:
        """PostgreSQL has it, confirmed. It is forgotten here; a crash before that replays it to no effect."""
        self._forget(kept)
        kept.replayed.set()
        self._removals.append(kept)
        self._work.set()

    async def park(self, kept: Kept, reason: str) -> None:
        """Set aside what can not be replayed, so that it holds up nobody."""
        log.error("spool entry parked", extra={"entry": kept.entry_id, "document": kept.document_id, "reason": reason})
        self._forget(kept)
        kept.parked = reason
        self._entries[kept.entry_id] = kept
        if self.broken is None:
            try:
                store = self._opened()
                await self._in_thread(lambda: store.park(kept.entry_id, reason[:1000]))
            except SpoolUnusable as error:
                self._break(str(error))
            except SpoolFull as error:
                log.warning("the parking is not on disk", extra={"reason": str(error)})

    async def take_up_parked(self) -> None:
        """Parked entries wait again, behind none of those that came after them. Damaged ones stay. SpoolUnusable."""
        store = self._opened()
        for kept in [one for one in self._entries.values() if one.parked is not None]:
            if (kept.parked or "").startswith("damaged"):
                continue
            await self._in_thread(partial(store.park, kept.entry_id, None))
            kept.parked = None
            self._waiting += 1
            self._lanes[kept.lane] += 1

    async def read(self, kept: Kept) -> Entry:
        """The entry with its text. Raises RecordDamaged, SpoolUnusable."""
        store = self._opened()
        stored = await self._in_thread(lambda: store.read(kept.entry_id))
        if stored is None:
            raise RecordDamaged("the record is gone")
        return decode(stored.record, stored.checksum)

    def next(self, most: int, most_bytes: int) -> list[Kept]:
        """The oldest entries that wait and are durable, at least one where there is one."""
        found: list[Kept] = []
        size = 0
        for kept in self._entries.values():
            if kept.parked is not None:
                continue
            if not kept.durable.done() or len(found) == most or (found and size + kept.size > most_bytes):
                break
            found.append(kept)
            size += kept.size
        return found

    # Inside

    def _register(self, kept: Kept) -> None:
        self._entries[kept.entry_id] = kept
        self._bytes += kept.size
        if kept.parked is None:
            self._waiting += 1
            self._lanes[kept.lane] += 1
            if kept.key is not None:
                self._by_key[kept.tenant, kept.key] = kept

    def _forget(self, kept: Kept) -> None:
        if self._entries.pop(kept.entry_id, None) is None or kept.parked is not None:
            return
        self._waiting -= 1
        self._lanes[kept.lane] -= 1
        if not self._lanes[kept.lane]:
            del self._lanes[kept.lane]
        if kept.key is not None:
            self._by_key.pop((kept.tenant, kept.key), None)

    def _recover(self, name: str, entry: Entry | None, size: int, parked: str | None) -> None:
        known = entry or Entry(replica="", tenant="", kind="document", document_id="", content="", entry_id=name)
        kept = _kept(known, size)
        kept.parked = parked
        kept.durable.set_result(None)
        self._register(kept)
        self._newest_us = max(self._newest_us, kept.accepted_us)

    def _opened(self) -> Store:
        if self._store is None:
            raise SpoolUnusable(self.broken or "not open")
        return self._store

    def _break(self, reason: str) -> None:
        self.broken = reason
        log.critical("the spool is unusable until a restart", extra={"reason": reason})

    async def _write(self) -> None:
        """Everything that came while the last fsync ran shares the next one."""
        while not self._closing:
            await self._work.wait()
            self._work.clear()
            appends, self._appends = self._appends, []
            removals, self._removals = self._removals, []
            if self.broken is None:
                await self._commit(appends, removals)
            else:
                self._refuse(appends, SpoolUnusable(self.broken))

    async def _commit(self, appends: list[tuple[Kept, bytes]], removals: list[Kept]) -> None:
        records = [(kept.entry_id, record) for kept, record in appends]
        names = [kept.entry_id for kept in removals]
        store = self._opened()
        try:
            await self._in_thread(lambda: store.commit(records, names))
        except SpoolFull as error:
            self._refuse(appends, error)
            # The entries are in PostgreSQL: with the next batch they are tried again.
            self._removals = [*removals, *self._removals]
            if not self._entries and not self._appends:
                await self._start_over(store)
            return
        except SpoolUnusable as error:
            # A fsync that failed may have dropped the pages: nothing that is written after it could be trusted.
            self._break(str(error))
            self._refuse(appends, error)
            return
        self._bytes -= sum(kept.size for kept in removals)
        for kept, _record in appends:
            kept.durable.set_result(None)
        if appends:
            self.filled.set()
        elif not self._entries and not self._appends and removals:
            try:
                await self._in_thread(store.shrink)
            except SpoolUnusable as error:
                self._break(str(error))

    async def _start_over(self, store: Store) -> None:
        self._removals.clear()
        try:
            await self._in_thread(store.start_over)
        except SpoolUnusable as error:
            self._break(str(error))
            return
        self._bytes = sum(kept.size for kept in self._entries.values())

    def _refuse(self, appends: list[tuple[Kept, bytes]], error: Exception) -> None:
        for kept, _record in appends:
            self._forget(kept)
            self._bytes -= kept.size
            kept.durable.set_exception(error)
            kept.durable.exception()  # whoever waits sees it; a client that went away does not

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _summaries(store: Store) -> list[tuple[str, Entry | None, int, str | None]]:
    """(id, entry without its text, bytes, why parked): read in the spool's thread, each checksum checked."""
    found: list[tuple[str, Entry | None, int, str | None]] = []
    for stored in store.all():
        size = len(stored.record) + _OVERHEAD
        try:
            entry = replace(decode(stored.record, stored.checksum), content="", metadata={})
        except RecordDamaged as error:
            found.append((stored.entry_id, None, size, f"damaged: {error}"))
        else:
            found.append((stored.entry_id, entry, size, stored.parked))
    return found
