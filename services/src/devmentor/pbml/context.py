"""Fetch: what is known that bears on a query, within a token budget, with where it comes from."""

import asyncio
import hashlib
import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from prometheus_client import Counter, Histogram

from devmentor.common.errors import ApiError
from devmentor.pbml.db import Database
from devmentor.pbml.embedder import Embedder, EmbedderUnavailable, TextRefused, Vector, cosine
from devmentor.pbml.index import Index, IndexUnavailable
from devmentor.pbml.models import ContextRequest, watermark_seq
from devmentor.pbml.preprocess import chunk, embedding_input, normalise, words
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import chunks, generations, ledger, maintenance
from devmentor.pbml.store.ledger import Missing, Pending, Turn
from devmentor.pbml.tokens import TokenCounter

log = logging.getLogger(__name__)

FETCH_SECONDS = Histogram(
    "pbml_fetch_seconds",
    "Time of a fetch by stage",
    ["stage"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
DEGRADED = Counter("pbml_fetch_degraded", "Fetches that answered without a part", ["part"])
MISSING = Counter("pbml_fetch_missing", "Fetches that could not draw on acknowledged versions", ["state"])
SERVED = Counter("pbml_fetch_chunks", "Chunks that were served", ["source"])

_SHORTEST_CUT = 16
"""Tokens below which the beginning of a chunk is not worth its place."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that may be served."""

    document_id: str
    version: int
    chunk: int
    kind: str
    title: str | None
    section: str
    text: str
    score: float
    source: str


@dataclass(frozen=True, slots=True)
class _State:
    """What one transaction on PostgreSQL says before the index is asked."""

    documents_generation: int
    conversation_generation: int
    turns: list[Turn]
    pending: list[Pending]
    missing: Missing
    index_incomplete: bool


class ContextService:
    """Answers POST /v1/context."""

    def __init__(
        self, settings: Settings, database: Database, index: Index, embedder: Embedder, counter: TokenCounter
    ) -> None:
        self._s = settings
        self._db = database
        self._index = index
        self._embedder = embedder
        self._counter = counter

    async def fetch(self, tenant: str, request: ContextRequest) -> dict[str, Any]:
        """The response's body. ApiError 409 where the watermark is not in this ledger."""
        start = time.monotonic()
        degraded: list[str] = []
        embedding = asyncio.create_task(self._embed_query(request.query))
        try:
            # Generations are read before anything is retrieved: what changes in between belongs to a
            # later context_version, so a cache never keeps something old under a new name.
            state = await self._read_state(tenant, request)
            _observe("state", start)
            vector = await embedding
        finally:
            embedding.cancel()
        if vector is None:
            degraded.append("embedder")
        if state.index_incomplete:
            degraded.append("index")
        candidates = await self._live(tenant, request, None if state.index_incomplete else vector, degraded)
        candidates = self._without_replaced(candidates, state.pending)
        candidates += await self._from_ledger(request.query, vector, state.pending, degraded)
        _observe("retrieve", start)
        body = self._assemble(request, state, candidates)
        body["degraded"] = bool(degraded)
        if degraded:
            body["degraded_parts"] = sorted(set(degraded))
            body["context_version"] += ".degraded"  # what is cached of it must not outlive the fault
            for part in set(degraded):
                DEGRADED.labels(part).inc()
        _observe("total", start)
        return body

    # -- retrieval ----------------------------------------------------------------------------

    async def _embed_query(self, query: str) -> Vector | None:
        try:
            async with asyncio.timeout(self._s.fetch_timeout_s):
                return (await self._embedder.embed([query]))[0]
        except (EmbedderUnavailable, TextRefused, TimeoutError) as error:
            log.warning("query not embedded", extra={"reason": str(error) or type(error).__name__})
            return None

    async def _read_state(self, tenant: str, request: ContextRequest) -> _State:
        conversation = request.conversation_id
        async with self._db.read() as c:
            documents, turns_generation = await generations.current(c, tenant, conversation)
            pending: list[Pending] = []
            seq: int | None = None
            if request.watermark is not None:
                seq = watermark_seq(request.watermark)
                if not await ledger.watermark_exists(c, tenant, seq):
                    raise ApiError(
                        409,
                        "watermark_not_reached",
                        "this replica's ledger does not hold the watermark (yet)",
                        param="watermark",
                        headers={"Retry-After": "1"},
                    )
                pending = await ledger.pending_versions(
                    c, tenant, seq, conversation, request.filters.document_ids, self._s.fetch_pending_documents
                )
            turns = (
                await ledger.recent_turns(c, tenant, conversation, self._s.fetch_turns)
                if conversation is not None and self._s.fetch_turns
                else []
            )
            served = [*(p.seq for p in pending), *(turn.seq for turn in turns)]
            missing = await ledger.missing_versions(c, tenant, seq, conversation, request.filters.document_ids, served)
            incomplete = await maintenance.index_incomplete(c)
        return _State(documents, turns_generation, turns, pending, missing, incomplete)

    async def _live(
        self, tenant: str, request: ContextRequest, vector: Vector | None, degraded: list[str]
    ) -> list[Candidate]:
        """From the index, else by words from PostgreSQL."""
        hits: list[tuple[str, int, int, float]] | None = None
        ids = request.filters.document_ids
        if vector is not None:
            try:
                async with asyncio.timeout(self._s.fetch_timeout_s):
                    hits = await self._index.search(
                        tenant,
                        vector,
                        limit=self._s.fetch_candidates,
                        min_score=self._s.fetch_min_score,
                        conversation_id=request.conversation_id,
                        document_ids=ids,
                    )
            except (IndexUnavailable, TimeoutError) as error:
                log.warning("index not searched", extra={"reason": str(error) or type(error).__name__})
                degraded.append("index")
        async with self._db.read() as c:
            if hits is not None:
                rows, source = await chunks.live_chunks(c, tenant, hits), "index"
            else:
                found = sorted(words(request.query), key=len, reverse=True)
                rows = await chunks.full_text(c, tenant, found, request.conversation_id, ids, self._s.fetch_candidates)
                source = "full_text"
        return [
            Candidate(r.document_id, r.version, r.chunk, r.kind, r.title, r.section, r.body, r.score, source)
            for r in rows
        ]

    @staticmethod
    def _without_replaced(candidates: list[Candidate], pending: list[Pending]) -> list[Candidate]:
        """A reader who has written a newer version must not be shown the older one."""
        newest = {p.document_id: p.version for p in pending}
        return [c for c in candidates if c.version > newest.get(c.document_id, 0)]

    async def _from_ledger(
        self, query: str, vector: Vector | None, pending: list[Pending], degraded: list[str]
    ) -> list[Candidate]:
        """Chunks of acknowledged versions that the index does not have yet.

        Chunked here and now; those that share most words with the query are embedded and scored as the
        index would.
        """
        if not pending or not self._s.fetch_pending_chunks:
            return []
        asked = words(query)
        pieces = await asyncio.to_thread(
            lambda: [
                Candidate(p.document_id, p.version, k.number, p.kind, p.title, k.section, k.text, 0.0, "ledger")
                for p in pending
                for k in chunk(normalise(p.content), self._s.chunk_chars)
            ]
        )
        overlap = {id(piece): len(asked & words(piece.text)) / max(1, len(asked)) for piece in pieces}
        best = sorted(pieces, key=lambda piece: overlap[id(piece)], reverse=True)[: self._s.fetch_pending_chunks]
        if vector is not None:
            try:
                async with asyncio.timeout(self._s.fetch_timeout_s):
                    vectors = await self._embedder.embed(
                        [embedding_input(piece.title, piece.section, piece.text) for piece in best]
                    )
                return [replace(p, score=cosine(vector, v)) for p, v in zip(best, vectors, strict=True)]
            except (EmbedderUnavailable, TextRefused, TimeoutError) as error:
                log.warning("pending chunks scored by words", extra={"reason": str(error) or type(error).__name__})
                degraded.append("embedder")
        return [replace(piece, score=overlap[id(piece)]) for piece in best]

    # -- assembly -----------------------------------------------------------------------------

    def _assemble(self, request: ContextRequest, state: _State, candidates: list[Candidate]) -> dict[str, Any]:
        budget = request.token_budget
        turns, spent = fit_turns(state.turns, int(budget * self._s.fetch_turn_share), self._counter)
        shown = {turn.document_id for turn in turns}
        chosen, cost = fit_chunks([c for c in candidates if c.document_id not in shown], budget - spent, self._counter)
        for item in chosen:
            SERVED.labels(item["source"]).inc()
        for name, count in asdict(state.missing).items():
            if count:
                MISSING.labels(name).inc()
        return {
            "chunks": chosen,
            "turns": [{"role": turn.role, "content": turn.content} for turn in turns],
            "tokens": spent + cost,
            "context_version": context_version(
                state.documents_generation, state.conversation_generation, state.pending
            ),
            "missing": asdict(state.missing),
        }


def context_version(documents: int, conversation: int, pending: list[Pending]) -> str:
    """Equal only while a fetch would retrieve from the same documents and turns."""
    version = f"d{documents}.c{conversation}"
    if pending:
        names = "\n".join(sorted(f"{p.document_id}\n{p.version}" for p in pending))
        version += f".p{hashlib.sha256(names.encode()).hexdigest()[:16]}"
    return version


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


def fit_chunks(candidates: list[Candidate], budget: int, counter: TokenCounter) -> tuple[list[dict[str, Any]], int]:
    """The best chunks that fit, best first; a text that was seen is not repeated.

    A chunk that does not fit is passed over for a shorter one, but the best of all is cut rather than
    left out.
    """
    chosen: list[dict[str, Any]] = []
    seen: set[str] = set()
    spent = 0
    for candidate in sorted(candidates, key=lambda c: (-c.score, c.document_id, c.chunk)):
        if candidate.text in seen:
            continue
        text, cost, truncated = candidate.text, counter.count(candidate.text), False
        if spent + cost > budget:
            if chosen or budget - spent < _SHORTEST_CUT:
                continue
            text = counter.cut(text, budget - spent)
            cost, truncated = counter.count(text), True
        seen.add(candidate.text)
        spent += cost
        chosen.append(
            {
                "text": text,
                "score": round(candidate.score, 6),
                "document_id": candidate.document_id,
                "version": candidate.version,
                "chunk": candidate.chunk,
                "source": candidate.source,
                "kind": candidate.kind,
                "title": candidate.title,
                "section": candidate.section,
                "tokens": cost,
                "truncated": truncated,
            }
        )
    return chosen, spent


def _observe(stage: str, start: float) -> None:
    FETCH_SECONDS.labels(stage).observe(time.monotonic() - start)
