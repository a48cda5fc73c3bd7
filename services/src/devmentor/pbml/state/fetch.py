"""A fetch while PostgreSQL is away: the same fetch, from the replica's own state."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from devmentor.common.errors import ApiError
from devmentor.pbml.context.fuse import Found
from devmentor.pbml.context.reached import not_reached
from devmentor.pbml.context.retrieve import Sources, piece
from devmentor.pbml.context.service import DEGRADED, ContextService, _State
from devmentor.pbml.db import Database, DatabaseUnavailable
from devmentor.pbml.embedder import Embedder
from devmentor.pbml.index import Index
from devmentor.pbml.models import ContextRequest, spooled_id, watermark_seq
from devmentor.pbml.preprocess import words
from devmentor.pbml.settings import Settings
from devmentor.pbml.spool.shown import NEWEST, UNNUMBERED, Shown, up_to
from devmentor.pbml.spool.spool import Spool
from devmentor.pbml.spool.store import SpoolUnusable
from devmentor.pbml.state.metrics import FETCHES
from devmentor.pbml.state.reader import Reader, Scope, StateAway, View
from devmentor.pbml.store.chunks import LiveChunk
from devmentor.pbml.store.ledger import Missing
from devmentor.pbml.tokens import TokenCounter

log = logging.getLogger(__name__)

PART = "postgres"
"""What a degraded answer of the state is without."""

_AWAY_S = 2.0
_ALL = 2**63 - 1
_NOTHING = Shown((), Missing(0, 0))

T = TypeVar("T")


def scope_of(tenant: str, request: ContextRequest) -> Scope:
    """Which chunks the request asks of."""
    return Scope(tenant, request.conversation_id, request.filters.document_ids)


class StateSources(Sources):
    """Words and texts from the state; vectors from Qdrant as before, where the state says what is live."""

    def __init__(
        self, settings: Settings, database: Database, index: Index, embedder: Embedder, reader: Reader
    ) -> None:
        super().__init__(settings, database, index, embedder, reader)
        self._reader = reader

    async def by_words(
        self, tenant: str, request: ContextRequest, degraded: list[str], common: int | None = None
    ) -> list[Found]:
        """Live chunks with the query's words."""
        if common is not None:
            return []  # nothing was left out for being common
        asked = sorted(words(request.query))
        scope, limit = scope_of(tenant, request), self._s.fetch_candidates
        rows = await self._read(lambda view: view.by_words(scope, asked, limit), degraded)
        return [Found(piece(row), "full_text", row.score) for row in rows]

    async def _live(self, tenant: str, hits: Sequence[tuple[str, int, int, float]]) -> list[LiveChunk]:
        return await self._read(lambda view: view.live_chunks(tenant, hits), [])

    async def _read(self, work: Callable[[View], list[LiveChunk]], degraded: list[str]) -> list[LiveChunk]:
        try:
            return await read(self._reader, work, self._s.fetch_timeout_s)
        except StateAway as error:
            log.warning("the state did not answer", extra={"reason": str(error)})
            degraded.append("full_text")
            return []


class StateContext(ContextService):
    """Answers from the state alone. Raises StateAway where it can not."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        index: Index,
        embedder: Embedder,
        counter: TokenCounter,
        reader: Reader,
        spool: Spool | None = None,
    ) -> None:
        super().__init__(settings, database, index, embedder, counter)
        self._reader = reader
        self._spool = spool
        self._sources = StateSources(settings, database, index, embedder, reader)

    async def fetch(self, tenant: str, request: ContextRequest) -> dict[str, Any]:
        """As of ContextService, and it says what it is."""
        body = await super().fetch(tenant, request)
        if not body["degraded"]:
            body["context_version"] += ".degraded"
        for chunk in body["chunks"]:
            if chunk["version"] == NEWEST:
                chunk["version"] = UNNUMBERED
        body["degraded"] = True
        body["degraded_parts"] = sorted({PART, *body.get("degraded_parts", ())})
        DEGRADED.labels(PART).inc()
        FETCHES.inc()
        return body

    async def _read_state(self, tenant: str, request: ContextRequest) -> _State:
        mark = request.watermark
        seq = watermark_seq(mark) if mark is not None else None
        shown = await self._spooled(tenant, request, mark) if mark is not None and seq is None else None

        def work(view: View) -> _State:
            if mark is not None and seq is not None and not view.reached(tenant, seq):
                raise not_reached(mark, "PostgreSQL is away, and this replica's state")
            return self._state_in(view, tenant, request, _ALL if shown is not None else seq, shown or _NOTHING)

        return await read(self._reader, work, self._s.fetch_timeout_s)

    async def _spooled(self, tenant: str, request: ContextRequest, mark: str) -> Shown:
        """What this replica's spool has up to one of its watermarks. ApiError 409 where it has not that one."""
        kept = self._spool.find(spooled_id(mark)) if self._spool is not None else None
        if self._spool is None or kept is None or kept.tenant != tenant or not kept.readable:
            raise not_reached(mark, "PostgreSQL is away, and this replica's spool")
        try:
            return await up_to(
                self._spool,
                kept,
                request.conversation_id,
                request.filters.document_ids,
                max(self._s.fetch_pending_documents, self._s.fetch_turns),
            )
        except SpoolUnusable as error:
            raise StateAway(f"the spool: {error}") from error

    def _state_in(self, view: View, tenant: str, request: ContextRequest, up_to: int | None, spooled: Shown) -> _State:
        """What the state has, up to a number for what is not live, below what waits in the spool."""
        asked, most = scope_of(tenant, request), self._s.fetch_pending_documents
        about = view.about(tenant)
        newer = spooled.pending(about.at * 1e6)
        replaced = {p.document_id for p in newer if p.version == NEWEST}
        waiting = view.pending(asked, up_to, most) if up_to is not None else []
        turns = (
            view.turns(tenant, request.conversation_id, self._s.fetch_turns)
            if request.conversation_id is not None and self._s.fetch_turns
            else []
        )
        pending = [*newer, *(p for p in waiting if p.document_id not in replaced)]
        served = [*(p.seq for p in waiting), *(turn.seq for turn in turns)]
        missing = view.missing(asked, up_to if up_to != _ALL else None, served)
        # Only a state with the same snapshot, and the same entries above it, has the same material for certain.
        entries = "".join(f"\n{kept.entry_id}" for kept, _entry in spooled.entries)
        named = hashlib.sha256(f"{about.snapshot}\n{about.digest}{entries}".encode()).digest()
        return _State(
            documents_generation=int.from_bytes(named[:6], "big"),
            conversation_generation=0,
            pins=view.pins(tenant, request.conversation_id),
            turns=[*spooled.turns(), *turns][: self._s.fetch_turns],
            summaries=[],
            pending=pending,
            missing=Missing(missing.failed + spooled.missing.failed, missing.unindexed + spooled.missing.unindexed),
            index_incomplete=False,
        )


class WithState:
    """A fetch by PostgreSQL, and by the state where that is away."""

    def __init__(self, normal: ContextService, degraded: StateContext) -> None:
        self._normal = normal
        self._degraded = degraded
        self._away_until = 0.0

    async def fetch(self, tenant: str, request: ContextRequest) -> dict[str, Any]:
        """The response's body. Raises as ContextService does, where the state can not answer either."""
        if time.monotonic() < self._away_until:
            # Just now PostgreSQL was away: not every fetch waits for that again.
            try:
                return await self._degraded.fetch(tenant, request)
            except (StateAway, ApiError) as error:
                log.info("the state has no answer, PostgreSQL is asked", extra={"reason": str(error)})
        try:
            return await self._normal.fetch(tenant, request)
        except DatabaseUnavailable as error:
            self._away_until = time.monotonic() + _AWAY_S
            try:
                return await self._degraded.fetch(tenant, request)
            except StateAway as reason:
                log.warning("no state to answer from", extra={"reason": str(reason)})
                raise error from reason


async def read(reader: Reader, work: Callable[[View], T], timeout_s: float) -> T:
    """The result of `work` on one state of the ledger. Raises StateAway."""

    def whole() -> T:
        with reader.reading(timeout_s) as view:
            return work(view)

    return await asyncio.to_thread(whole)
