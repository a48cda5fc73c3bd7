"""A write to PostgreSQL or, while it is away, to the spool: what the API's endpoints use."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from devmentor.common import tasks
from devmentor.common.errors import ApiError, unavailable
from devmentor.pbml.db import Committed, Connection, Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.models import spooled_id
from devmentor.pbml.settings import Settings
from devmentor.pbml.spool import metrics
from devmentor.pbml.spool.entry import Entry, Lane
from devmentor.pbml.spool.replay import Replayer
from devmentor.pbml.spool.spool import Kept, Spool
from devmentor.pbml.spool.store import SpoolFull, SpoolOutcomeUnknown, SpoolUnusable

_MIB = 1024 * 1024
_WATERMARK_WAIT_S = 1.0

Response = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spooled:
    """An acknowledgement of the spool. `replayed`: given before, for the same Idempotency-Key."""

    response: Response
    replayed: bool


class SpooledWrites:
    """The spool, its replay and the choice between the two ways."""

    def __init__(self, spool: Spool, replayer: Replayer, database: Database, after_s: float) -> None:
        self.spool = spool
        self._replayer = replayer
        self._db = database
        self._after_s = after_s

    @classmethod
    def of(
        cls, settings: Settings, database: Database, queue: Any, has_key: Callable[[str], bool]
    ) -> "SpooledWrites | None":
        """What the settings ask for; None where they ask for no spool."""
        if settings.spool_dir is None:
            return None
        spool = Spool(
            settings.spool_dir,
            max_bytes=settings.spool_max_mib * _MIB,
            min_free_bytes=settings.spool_min_free_mib * _MIB,
            clock_us=lambda: time.time_ns() // 1000,
        )
        after_s = min(settings.spool_after_s, settings.database_timeout_s)
        return cls(spool, Replayer(spool, database, queue, has_key), database, after_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open and replayed from."""
        await self.spool.open()
        replaying = asyncio.create_task(self._replayer.run(), name="spool-replay")
        try:
            yield
        finally:
            await tasks.end(replaying)
            await self.spool.close()

    async def write(
        self, work: Callable[[Connection], Awaitable[Response]], draft: Entry
    ) -> Committed[Response] | Spooled:
        """PostgreSQL's commit, or the spool's. Raises DatabaseUnavailable, OutcomeUnknown, KeyReused, ApiError 503.

        `work` writes the draft's id (`store.spooled.record`): that makes it safe to spool a commit whose outcome is not
        known. The replay's row of the same id waits for that transaction if it is still under way, finds its row if it
        was committed, and comes first if it never will be: in each case the write is there once. Decision 0059.
        """
        kept = self.spool.known(draft.tenant, draft.key, draft.request_sha256)
        if kept is not None:
            return await self._spool(draft, None)
        if self.spool.must_take(draft.lane):
            return await self._spool(draft, None)
        try:
            committed = await self._db.write(work, timeout_s=self._after_s)
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            return await self._spool(draft, error)
        self.spool.saw(committed.at)
        return committed

    async def _spool(self, draft: Entry, cause: DatabaseUnavailable | OutcomeUnknown | None) -> Spooled:
        before = self.spool.known(draft.tenant, draft.key, draft.request_sha256)
        try:
            kept: Kept = await self.spool.append(draft)
        except SpoolFull as error:
            metrics.REFUSED.labels("full").inc()
            if isinstance(cause, OutcomeUnknown):
                raise cause from error
            raise unavailable(
                "spool_full",
                "the store is away and this replica's spool is full; nothing was written, send it again",
                5,
            ) from error
        except SpoolUnusable as error:
            metrics.REFUSED.labels("unusable").inc()
            if isinstance(error, SpoolOutcomeUnknown) and not isinstance(cause, OutcomeUnknown):
                raise OutcomeUnknown(f"spool: {error}") from error
            raise cause or DatabaseUnavailable(f"spool: {error}") from error
        if isinstance(cause, DatabaseUnavailable):
            self.spool.away = True
        return Spooled(kept.response(), before is not None)

    def refuse_to_overtake(self, lane: Lane, name: str, param: str | None = None) -> None:
        """ApiError 429 where what is not spooled itself, as a deletion, would come before what it is to follow.

        Not 503: the gateway counts a 5xx as an error and would eject the replica, whose spool takes other writes.
        """
        if self.spool.holds(lane):
            raise _later(
                "spool_pending",
                f"writes of {name} wait in this replica's spool for the store; nothing was done, send it again",
                param,
            )

    def refuse_while_away(self) -> None:
        """ApiError 429 where PostgreSQL is known to be away, for what would only wait for it in vain."""
        if self.spool.away and self.spool.waiting:
            raise _later("store_away", "the store is away and this is not spooled; nothing was done, send it again")

    async def wait_for(self, mark: str) -> None:
        """A moment for an entry of this spool to come into the ledger, so that a fetch with its watermark finds it."""
        kept = self.spool.find(spooled_id(mark))
        if kept is not None and kept.parked is None and not self.spool.away:
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATERMARK_WAIT_S):
                    await kept.replayed.wait()


def _later(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(429, code, message, param=param, headers={"Retry-After": "1"})
