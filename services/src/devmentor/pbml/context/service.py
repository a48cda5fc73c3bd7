"""A fetch from its request to its answer."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from prometheus_client import Counter, Histogram

from devmentor.pbml.context.fuse import Found, Hit, Piece, fuse, ranked
from devmentor.pbml.context.passages import beside, fit, take
from devmentor.pbml.context.reached import not_reached, reached
from devmentor.pbml.context.retrieve import Sources
from devmentor.pbml.context.summary import fit_summaries, summary_body
from devmentor.pbml.db import Database
from devmentor.pbml.embedder import Embedder
from devmentor.pbml.index import Index
from devmentor.pbml.models import ContextRequest
from devmentor.pbml.settings import Settings
from devmentor.pbml.state.reader import Reader
from devmentor.pbml.store import generations, ledger, maintenance, pins, summaries
from devmentor.pbml.store.ledger import Missing, Pending, Turn
from devmentor.pbml.store.pins import Pin
from devmentor.pbml.store.summaries import Summary
from devmentor.pbml.tokens import TokenCounter

FETCH_SECONDS = Histogram(
    "pbml_fetch_seconds",
    "Time of a fetch by stage",
    ["stage"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
DEGRADED = Counter("pbml_fetch_degraded", "Fetches that answered without a part", ["part"])
MISSING = Counter("pbml_fetch_missing", "Fetches that could not draw on acknowledged versions", ["state"])
SERVED = Counter("pbml_fetch_chunks", "Passages that were served, by the source that found them first", ["source"])

T = TypeVar("T")

_ANY = 2**31


@dataclass(frozen=True, slots=True)
class _State:
    """What one transaction on PostgreSQL says before anything is retrieved."""

    documents_generation: int
    conversation_generation: int
    pins: list[Pin]
    turns: list[Turn]
    summaries: list[Summary]
    pending: list[Pending]
    missing: Missing
    index_incomplete: bool


class ContextService:
    """Answers POST /v1/context."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        index: Index,
        embedder: Embedder,
        counter: TokenCounter,
        state: Reader | None = None,
    ) -> None:
        self._s = settings
        self._db = database
        self._sources = Sources(settings, database, index, embedder, state)
        self._counter = counter
        # With a state there is something better than to wait.
        self._read_timeout_s = settings.fetch_timeout_s if state is not None else None

    async def fetch(self, tenant: str, request: ContextRequest) -> dict[str, Any]:
        """The response's body. ApiError 409 where the watermark is not in this ledger."""
        start = time.monotonic()
        degraded: list[str] = []
        embedding = asyncio.create_task(self._sources.embed(request.query, degraded))
        try:
            # Generations are read before anything is retrieved: what changes in between belongs to a
            # later context_version, so a cache never keeps something old under a new name.
            state = await self._read_state(tenant, request)
            _observe("state", start)
            if state.index_incomplete:
                degraded.append("index")  # asked all the same: what it has is better than words alone
            hits, pieces = await self._retrieve(tenant, request, state.pending, embedding, degraded)
        finally:
            embedding.cancel()
        _observe("retrieve", start)
        body = await self._assemble(tenant, request, state, hits, pieces)
        body["degraded"] = bool(degraded)
        if degraded:
            body["degraded_parts"] = sorted(set(degraded))
            body["context_version"] += ".degraded"  # what is cached of it must not outlive the fault
            for part in set(degraded):
                DEGRADED.labels(part).inc()
        _observe("total", start)
        return body

    async def _read_state(self, tenant: str, request: ContextRequest) -> _State:
        conversation = request.conversation_id
        async with self._db.read(self._read_timeout_s) as c:
            documents, turns_generation = await generations.current(c, tenant, conversation)
            pinned = await pins.listed(c, tenant, conversation, tenants_too=True)
            pending: list[Pending] = []
            seq: int | None = None
            if request.watermark is not None:
                seq = await reached(c, tenant, request.watermark)
                if seq is None:
                    raise not_reached(request.watermark, "the ledger")
                pending = await ledger.pending_versions(
                    c, tenant, seq, conversation, request.filters.document_ids, self._s.fetch_pending_documents
                )
            turns = (
                await ledger.recent_turns(c, tenant, conversation, self._s.fetch_turns)
                if conversation is not None and self._s.fetch_turns
                else []
            )
            older = (
                await summaries.shown(c, tenant, conversation, self._s.fetch_summaries)
                if conversation is not None and self._s.fetch_summaries and self._s.fetch_summary_share
                else []
            )
            served = [*(p.seq for p in pending), *(turn.seq for turn in turns)]
            missing = await ledger.missing_versions(c, tenant, seq, conversation, request.filters.document_ids, served)
            incomplete = await maintenance.index_incomplete(c)
        return _State(documents, turns_generation, pinned, turns, older, pending, missing, incomplete)

    async def _retrieve(
        self,
        tenant: str,
        request: ContextRequest,
        pending: list[Pending],
        embedding: "asyncio.Task[list[float] | None]",
        degraded: list[str],
    ) -> tuple[list[Hit], list[Piece]]:
        """Hits of all sources, best first, and the chunks of pending versions."""
        words, pieces = await asyncio.gather(
            self._sources.by_words(tenant, request, degraded), self._sources.pending_pieces(pending)
        )
        vector = await embedding
        if vector is None and not words:
            # Common words are all there is: rather a slow answer than none, within the same bound of time.
            words = await self._sources.by_words(tenant, request, degraded, common=_ANY)
        dense = await self._sources.dense(tenant, request, vector, degraded) if vector is not None else []
        near, overlapping = await self._sources.from_ledger(request.query, vector, pieces, degraded)
        rankings = [
            ranked([*without_replaced(dense, pending), *near]),
            without_replaced(words, pending),
            overlapping,
        ]
        return fuse(rankings), pieces

    async def _assemble(
        self, tenant: str, request: ContextRequest, state: _State, hits: list[Hit], pending: list[Piece]
    ) -> dict[str, Any]:
        budget, counter = request.token_budget, self._counter
        pinned, pins_cost = await self._counted(
            (pin.body for pin in state.pins),
            lambda: take(((pin, pin.body) for pin in state.pins), int(budget * self._s.fetch_pin_share), counter),
        )
        left = budget - pins_cost
        turns, turns_cost = await self._counted(
            (turn.content for turn in state.turns),
            lambda: fit_turns(state.turns, int(left * self._s.fetch_turn_share), counter),
        )
        left -= turns_cost
        summarised, summaries_cost = await self._counted(
            (summary.body for summary in state.summaries),
            lambda: fit_summaries(
                state.summaries, turns, min(left, int(budget * self._s.fetch_summary_share)), counter
            ),
        )
        left -= summaries_cost
        shown = {turn.document_id for turn in turns}
        hits = [hit for hit in hits if hit.piece.document_id not in shown]
        neighbours = await self._sources.beside(tenant, beside(hits[: self._s.fetch_neighbours]), pending)
        passages = await self._counted((hit.piece.text for hit in hits), lambda: fit(hits, neighbours, left, counter))
        SERVED.labels("pin").inc(len(pinned))
        SERVED.labels("summary").inc(len(summarised))
        for passage in passages:
            SERVED.labels(passage.hit.source).inc()
        for name, count in asdict(state.missing).items():
            if count:
                MISSING.labels(name).inc()
        return {
            "chunks": [
                *(pin_body(*pin) for pin in pinned),
                *(summary_body(request.conversation_id or "", *one) for one in summarised),
                *(passage.body() for passage in passages),
            ],
            "turns": [{"role": turn.role, "content": turn.content} for turn in turns],
            "tokens": pins_cost + turns_cost + summaries_cost + sum(passage.tokens for passage in passages),
            "token_counter": counter.name,
            "context_version": context_version(
                state.documents_generation, state.conversation_generation, state.pending
            ),
            "missing": asdict(state.missing),
        }

    async def _counted(self, texts: Iterable[str], work: Callable[[], T]) -> T:
        """The result of `work`, which counts these texts: beside the event loop where that takes long."""
        if sum(map(len, texts)) <= self._counter.inline_chars:
            return work()
        return await asyncio.to_thread(work)


def without_replaced(found: Sequence[Found], pending: Sequence[Pending]) -> list[Found]:
    """A reader who has written a newer version must not be shown the older one."""
    newest = {p.document_id: p.version for p in pending}
    return [f for f in found if f.piece.version > newest.get(f.piece.document_id, 0)]


def context_version(documents: int, conversation: int, pending: list[Pending]) -> str:
    """Equal only while a fetch would retrieve from the same documents and turns."""
    version = f"d{documents}.c{conversation}"
    if pending:
        names = "\n".join(sorted(f"{p.document_id}\n{p.version}" for p in pending))
        version += f".p{hashlib.sha256(names.encode()).hexdigest()[:16]}"
    return version


def pin_body(pin: Pin, tokens: int) -> dict[str, Any]:
    """A pinned fact among the passages."""
    return {
        "text": pin.body,
        "score": 1.0,
        "scores": {},
        "document_id": f"~pin/{pin.conversation_id}/{pin.name}" if pin.conversation_id else f"~pin/{pin.name}",
        "version": 1,
        "chunk": 0,
        "source": "pin",
        "kind": "pin",
        "title": pin.name,
        "section": "",
        "tokens": tokens,
        "truncated": False,
    }


def fit_turns(newest_first: list[Turn], budget: int, counter: TokenCounter) -> tuple[list[Turn], int]:
    """The latest turns that fit, oldest first, without a gap."""
    kept: list[Turn] = []
    spent = 0
    for turn in newest_first:
        cost = counter.count(turn.content)
        if spent + cost > budget:
            break
        kept.append(turn)
        spent += cost
    return kept[::-1], spent


def _observe(stage: str, start: float) -> None:
    FETCH_SECONDS.labels(stage).observe(time.monotonic() - start)
