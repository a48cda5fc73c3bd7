"""From the spool into PostgreSQL: in order, by one task, each write once."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import psycopg

from devmentor.pbml import jobs
from devmentor.pbml.db import Connection, Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.models import spooled_id, watermark_seq
from devmentor.pbml.spool import metrics
from devmentor.pbml.spool.entry import Entry, RecordDamaged
from devmentor.pbml.spool.spool import Kept, Spool
from devmentor.pbml.spool.store import SpoolUnusable
from devmentor.pbml.store import acceptance, idempotency, spooled

log = logging.getLogger(__name__)

BATCH = 64
BATCH_BYTES = 4 * 1024 * 1024
_SHORTEST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

OWN_FAULT = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
"""What a statement says of its values. Anything else is the database's state, and passes."""


class Replayer:
    """The spool's only way out."""

    def __init__(self, spool: Spool, database: Database, queue: Any, has_key: Callable[[str], bool]) -> None:
        self._spool = spool
        self._db = database
        self._queue = queue
        self._has_key = has_key

    async def run(self) -> None:
        """Until cancelled."""
        pause = _SHORTEST_PAUSE_S
        while True:
            await self._spool.filled.wait()
            try:
                if not await self.step():
                    self._spool.filled.clear()
                pause = _SHORTEST_PAUSE_S
                continue
            except (DatabaseUnavailable, OutcomeUnknown) as error:
                # An outcome that is not known is asked again: the entry's id says whether it is done.
                self._spool.away = isinstance(error, DatabaseUnavailable)
                metrics.REPLAY_FAILURES.labels("away").inc()
            except (psycopg.Error, SpoolUnusable) as error:
                metrics.REPLAY_FAILURES.labels("error").inc()
                log.error("replay stands still", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
            except Exception:
                metrics.REPLAY_FAILURES.labels("error").inc()
                log.exception("replay stands still")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def step(self) -> int:
        """The oldest entries, in one transaction; how many are done or parked. Raises what stops the replay."""
        batch = self._spool.next(BATCH, BATCH_BYTES)
        if not batch:
            return 0
        entries = [pair for kept in batch if (pair := await self._load(kept)) is not None]
        try:
            await self._write(entries)
        except OWN_FAULT:
            await self._one_by_one(entries)
        return len(batch)

    async def _load(self, kept: Kept) -> tuple[Kept, Entry] | None:
        try:
            entry = await self._spool.read(kept)
        except RecordDamaged as error:
            await self._spool.park(kept, f"damaged: {error}")
            return None
        if not self._has_key(entry.tenant):
            # Deleted, perhaps: `delete-tenant` asks that the key be gone first.
            await self._spool.park(kept, f"tenant {entry.tenant} has no key")
            return None
        return kept, entry

    async def _one_by_one(self, entries: list[tuple[Kept, Entry]]) -> None:
        for kept, entry in entries:
            try:
                await self._write([(kept, entry)])
            except OWN_FAULT as error:
                await self._spool.park(kept, f"{type(error).__name__}: {error}")

    async def _write(self, entries: list[tuple[Kept, Entry]]) -> None:
        async def work(c: Connection) -> list[str]:
            return [await replay(c, self._queue, entry) for _kept, entry in entries]

        committed = await self._db.write(work, timeout_s=30)
        self._spool.away = False
        self._spool.saw(committed.at)
        for (kept, _entry), result in zip(entries, committed.value, strict=True):
            metrics.REPLAYED.labels(result).inc()
            self._spool.release(kept)


async def replay(c: Connection, queue: Any, entry: Entry) -> str:
    """Write an entry with its job, its id and its key; what became of it: written, superseded or duplicate."""
    seq = await spooled.claim(c, entry.tenant, entry.entry_id)
    if seq is not None:
        # Committed with an outcome that nobody learnt: acknowledged when it was spooled, by this host's clock. With its
        # own time by PostgreSQL's it could seem newer than what this replica acknowledged after it.
        await spooled.date_back(c, seq, entry.accepted_at)
        return "duplicate"
    key = entry.key
    if key is not None:
        try:
            before = await idempotency.claim_digest(c, entry.tenant, key, bytes.fromhex(entry.request_sha256))
        except idempotency.KeyReused:
            # Too late for a 422: it was acknowledged, so it is written.
            log.warning("an acknowledged write's key is another request's", extra={"entry": entry.entry_id})
            before, key = None, None
        if before is not None:
            await spooled.settle(c, entry.entry_id, await _seq_of_answer(c, entry.tenant, before))
            return "duplicate"
    accepted, in_force = await _accept(c, entry)
    if in_force:
        await jobs.defer(queue, c, entry.tenant, [accepted])
    await spooled.settle(c, entry.entry_id, accepted.seq)
    if key is not None:
        await idempotency.answer_key(c, entry.tenant, key, entry.response())
    return "written" if in_force else "superseded"


async def _accept(c: Connection, entry: Entry) -> tuple[acceptance.Accepted, bool]:
    """The entry's place in the ledger, and whether it is in force there."""
    tenant, at, size = entry.tenant, entry.accepted_at, len(entry.content.encode())
    if entry.conversation_id is not None:
        assert entry.role is not None
        conversation = entry.conversation_id
        if await spooled.turn_is_late(c, tenant, conversation, at):
            late = await spooled.accept_late_turn(c, tenant, conversation, entry.document_id, entry.role, size, at)
            return late, False
        accepted = await acceptance.accept_turn(c, tenant, conversation, entry.document_id, entry.role, entry.content)
    else:
        if await spooled.document_is_late(c, tenant, entry.document_id, at):
            return await spooled.accept_late_document(c, tenant, entry.document_id, size, at), False
        accepted = await acceptance.accept_document(
            c, tenant, entry.document_id, entry.title, entry.metadata, entry.content
        )
    await spooled.date_back(c, accepted.seq, at)
    return accepted, True


async def _seq_of_answer(c: Connection, tenant: str, response: dict[str, Any]) -> int:
    """The seq behind an answer that was given before, by PostgreSQL or by a replica's spool."""
    mark = str(response["watermark"])
    seq = watermark_seq(mark)
    if seq is None:
        seq = await spooled.seq_of(c, tenant, spooled_id(mark))
    if seq is None:
        raise RuntimeError(f"{mark} is an idempotency key's answer and not in the ledger")
    return seq
