"""The sources of a fetch: nearest vectors from Qdrant, words from PostgreSQL, acknowledged texts from the ledger."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from devmentor.pbml.context.fuse import Found, Key, Piece, ranked
from devmentor.pbml.db import Database, DatabaseUnavailable
from devmentor.pbml.embedder import Embedder, EmbedderUnavailable, TextRefused, Vector, cosine
from devmentor.pbml.index import Hit, Index, IndexUnavailable
from devmentor.pbml.models import ContextRequest
from devmentor.pbml.preprocess import embedding_input, prepare, words
from devmentor.pbml.settings import Settings
from devmentor.pbml.state.reader import Reader, Scope, StateAway
from devmentor.pbml.store import chunks
from devmentor.pbml.store import words as full_text
from devmentor.pbml.store.chunks import LiveChunk
from devmentor.pbml.store.ledger import Pending

log = logging.getLogger(__name__)

_FREQUENCIES_S = 300.0


class Sources:
    """Each method answers with nothing, and adds its name to `degraded`, where its source is away or too slow."""

    def __init__(
        self, settings: Settings, database: Database, index: Index, embedder: Embedder, state: Reader | None = None
    ) -> None:
        self._s = settings
        self._db = database
        self._index = index
        self._embedder = embedder
        self._state = state
        self._frequencies = full_text.Frequencies()
        self._frequencies_until = 0.0

    async def embed(self, query: str, degraded: list[str]) -> Vector | None:
        """The query's vector."""
        try:
            async with asyncio.timeout(self._s.fetch_timeout_s):
                return (await self._embedder.embed([query]))[0]
        except (EmbedderUnavailable, TextRefused, TimeoutError) as error:
            _without("embedder", error, degraded)
            return None

    async def dense(self, tenant: str, request: ContextRequest, vector: Vector, degraded: list[str]) -> list[Found]:
        """The nearest chunks that PostgreSQL says are live, with their cosine."""
        hits = await self._nearest(tenant, request, vector, degraded)
        return ranked(Found(piece(row), "index", row.score) for row in await self._live(tenant, hits))

    async def _live(self, tenant: str, hits: Sequence[Hit]) -> list[LiveChunk]:
        if not hits:
            return []
        async with self._db.read() as c:
            return await chunks.live_chunks(c, tenant, hits)

    async def _nearest(self, tenant: str, request: ContextRequest, vector: Vector, degraded: list[str]) -> list[Hit]:
        """By Qdrant; by this replica's state where that is away and there is one."""
        try:
            async with asyncio.timeout(self._s.fetch_timeout_s):
                return await self._index.search(
                    tenant,
                    vector,
                    limit=self._s.fetch_candidates,
                    min_score=self._s.fetch_min_score,
                    conversation_id=request.conversation_id,
                    document_ids=request.filters.document_ids,
                )
        except (IndexUnavailable, TimeoutError) as error:
            _without("index", error, degraded)
        if self._state is None:
            return []
        try:
            return await asyncio.to_thread(_nearest_in_state, self._state, self._s, tenant, request, vector)
        except StateAway as error:
            log.warning("no state to search in", extra={"reason": str(error)})
            return []

    async def by_words(
        self, tenant: str, request: ContextRequest, degraded: list[str], common: int | None = None
    ) -> list[Found]:
        """Live chunks with the query's words. Bounded by candidates and by time: it is one of two ways to find.

        Words of more chunks than `common`, the setting's by default, are not searched for by themselves.
        """
        limit_ms = self._s.fetch_words_timeout_ms
        try:
            async with self._db.read(timeout_s=3 * limit_ms / 1000) as c:
                asked = await full_text.parse(c, request.query, limit_ms)
                if time.monotonic() >= self._frequencies_until:
                    self._frequencies = await full_text.frequencies(c)
                    self._frequencies_until = time.monotonic() + _FREQUENCIES_S
                wanted = full_text.plan(
                    asked,
                    self._frequencies,
                    tenant=tenant,
                    conversation_id=request.conversation_id,
                    document_ids=request.filters.document_ids,
                    common=common or self._s.fetch_words_common,
                )
                rows = await full_text.search(
                    c, tenant, wanted, candidates=self._s.fetch_words_candidates, limit=self._s.fetch_candidates
                )
        except DatabaseUnavailable as error:
            _without("full_text", error, degraded)
            return []
        return [Found(piece(row), "full_text", row.score) for row in rows]

    async def pending_pieces(self, pending: Sequence[Pending]) -> list[Piece]:
        """Acknowledged versions that the index does not have yet, chunked here and now."""
        if not pending or not self._s.fetch_pending_chunks:
            return []
        return await asyncio.to_thread(
            lambda: [
                Piece(p.document_id, p.version, k.number, p.kind, p.title, k.section, k.text, k.start, k.end)
                for p in pending
                for k in prepare(p.document_id, p.title, p.content, self._s.chunk_chars).chunks
            ]
        )

    async def from_ledger(
        self, query: str, vector: Vector | None, pieces: Sequence[Piece], degraded: list[str]
    ) -> tuple[list[Found], list[Found]]:
        """Pending chunks by cosine, and by the share of the query's words that they have.

        Those with most words are embedded and scored as the index would. Where that cannot be, all of them are in the
        second ranking, also those without any word: what was acknowledged is not left out because it cannot be judged.
        """
        asked = words(query)
        share = {piece.key: len(asked & words(piece.text)) / max(1, len(asked)) for piece in pieces}
        best = ranked(Found(piece, "ledger", share[piece.key]) for piece in pieces)[: self._s.fetch_pending_chunks]
        if vector is None or not best:
            return [], best
        texts = [embedding_input(f.piece.title, f.piece.section, f.piece.text) for f in best]
        try:
            async with asyncio.timeout(self._s.fetch_timeout_s):
                vectors = await self._embedder.embed(texts)
        except (EmbedderUnavailable, TextRefused, TimeoutError) as error:
            _without("embedder", error, degraded)
            return [], best
        near = [replace(f, score=cosine(vector, v)) for f, v in zip(best, vectors, strict=True)]
        return near, [replace(f, source="ledger_words") for f in best if f.score > 0]

    async def beside(self, tenant: str, keys: Sequence[Key], pending: Iterable[Piece]) -> list[Piece]:
        """The chunks with these keys that are live or pending."""
        at_hand = {piece.key: piece for piece in pending}
        have = [at_hand[key] for key in keys if key in at_hand]
        versions = {key[:2] for key in at_hand}
        wanted = [(*key, 0.0) for key in keys if key[:2] not in versions]
        if not wanted:
            return have
        return have + [piece(row) for row in await self._live(tenant, wanted)]


def _nearest_in_state(
    state: Reader, settings: Settings, tenant: str, request: ContextRequest, vector: Vector
) -> list[Hit]:
    with state.reading(settings.fetch_timeout_s) as view:
        return view.nearest(
            Scope(tenant, request.conversation_id, request.filters.document_ids),
            vector,
            sorted(words(request.query)),
            limit=settings.fetch_candidates,
            min_score=settings.fetch_min_score,
            most=settings.fetch_state_chunks,
        )


def piece(row: LiveChunk) -> Piece:
    """A chunk of the ledger, for a ranking."""
    return Piece(
        row.document_id, row.version, row.chunk, row.kind, row.title, row.section, row.body, row.start, row.end
    )


def _without(part: str, error: Exception, degraded: list[str]) -> None:
    log.warning("fetch goes on without a source", extra={"part": part, "reason": str(error) or type(error).__name__})
    degraded.append(part)
