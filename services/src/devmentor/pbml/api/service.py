"""What the endpoints share: clients, keys, and the one way in which anything is accepted."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import procrastinate
from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

from devmentor.common.auth import TenantKeys
from devmentor.common.errors import ApiError
from devmentor.pbml import jobs, tokens
from devmentor.pbml.api.requests import mapped
from devmentor.pbml.context import ContextService
from devmentor.pbml.db import Committed, Connection, Database
from devmentor.pbml.embedder import Embedder
from devmentor.pbml.index import Index
from devmentor.pbml.models import watermark
from devmentor.pbml.quota import QuotaCheck
from devmentor.pbml.settings import Settings
from devmentor.pbml.spool.entry import Entry
from devmentor.pbml.spool.writes import Spooled, SpooledWrites
from devmentor.pbml.state.fetch import StateContext, WithState
from devmentor.pbml.state.reader import Reader
from devmentor.pbml.store import idempotency, spooled
from devmentor.pbml.store.acceptance import Accepted

ACCEPTED = Counter("pbml_accepted", "Acknowledged items", ["kind", "durability"])
ACCEPTED_BYTES = Counter("pbml_accepted_bytes", "Acknowledged text", ["kind"])
REPLAYED = Counter("pbml_replayed", "Requests answered again by their Idempotency-Key")

Accept = Callable[[Connection], Awaitable[list[Accepted]]]


def document_answer(accepted: Sequence[Accepted]) -> dict[str, Any]:
    """What a client is told of one document's version."""
    [one] = accepted
    return {"document_id": one.document_id, "version": one.version, "watermark": watermark(one.seq)}


def turn_answer(accepted: Sequence[Accepted]) -> dict[str, Any]:
    """The same for a turn, whose name is nobody's business."""
    [one] = accepted
    return {"watermark": watermark(one.seq)}


class Service:
    """The parts that requests share."""

    def __init__(self, settings: Settings) -> None:
        if settings.tenants_file is None:
            raise ValueError("PBML_TENANTS_FILE is not set")
        self.settings = settings
        self.keys = TenantKeys(settings.tenants_file)
        self.quota = QuotaCheck(settings.quotas)
        self.database = Database(settings, "pbml-api")
        self.index = Index(settings)
        self.embedder = make_embedder(settings)
        self.queue = jobs.create(procrastinate.PsycopgConnector())
        self.counter = tokens.counter(settings.tokenizer_file, settings.bytes_per_token)
        self.state = Reader(settings.state_dir) if settings.state_dir is not None else None
        parts = (settings, self.database, self.index, self.embedder, self.counter)
        self.spool = SpooledWrites.of(settings, self.database, self.queue, self.keys.has)
        self.context: ContextService | WithState = ContextService(*parts, self.state)
        if self.state is not None:
            spool = self.spool.spool if self.spool is not None else None
            self.context = WithState(self.context, StateContext(*parts, self.state, spool))

    @asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        """Connections are opened and closed with the application."""
        await self.database.open()
        await self.embedder.open()
        try:
            async with self.queue.open_async(self.database.pool), AsyncExitStack() as stack:
                if self.spool is not None:
                    await stack.enter_async_context(self.spool.running())
                yield
        finally:
            await self.embedder.close()
            await self.index.close()
            await self.database.close()

    async def accept(
        self,
        request: Request,
        tenant: str,
        kind: str,
        body: dict[str, Any],
        size: int,
        accept: Accept,
        draft: Entry | None = None,
        answer: Callable[[Sequence[Accepted]], dict[str, Any]] = document_answer,
    ) -> JSONResponse:
        """One transaction: idempotency key, versions with their texts, jobs, response.

        Where there is a spool, a write with a `draft` goes there if PostgreSQL can not take it.
        """
        key = request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
            raise ApiError(400, "invalid_idempotency_key", "Idempotency-Key must have 1 to 255 printable characters")
        draft = draft if self.spool is not None else None
        # A long text is not serialised for nothing.
        digest = idempotency.request_bytes(f"{request.method} {kind}", body) if key or draft else b""
        if draft is not None:
            draft = replace(draft, key=key, request_sha256=hashlib.sha256(digest).hexdigest())
        replayed, items = False, 1

        async def work(c: Connection) -> dict[str, Any]:
            nonlocal replayed, items
            if key is not None:
                before = await idempotency.claim_key(c, tenant, key, digest)
                replayed = before is not None
                if before is not None:
                    return before
            accepted = await accept(c)
            items = len(accepted)
            await jobs.defer(self.queue, c, tenant, accepted)
            response = answer(accepted)
            if key is not None:
                await idempotency.answer_key(c, tenant, key, response)
            if draft is not None:
                await spooled.record(c, tenant, draft.entry_id, accepted[0].seq)
            return response

        try:
            async with mapped():
                written = await self._written(work, draft)
        except idempotency.KeyReused:
            raise ApiError(
                422, "idempotency_key_reused", "this Idempotency-Key was used with another request"
            ) from None
        if isinstance(written, Spooled):
            response, durability, replayed = written.response, "local", written.replayed
        else:
            response, durability = written.value, written.durability
        if replayed:
            REPLAYED.inc()
        else:
            ACCEPTED.labels(kind, durability).inc(items)
            ACCEPTED_BYTES.labels(kind).inc(size)
        headers = {"Idempotency-Replayed": "true"} if replayed else {}
        return JSONResponse({**response, "durability": durability}, status_code=202, headers=headers)

    async def _written(
        self, work: Callable[[Connection], Awaitable[dict[str, Any]]], draft: Entry | None
    ) -> Committed[dict[str, Any]] | Spooled:
        if self.spool is None:
            return await self.database.write(work)
        if draft is None:
            committed = await self.database.write(work)
            self.spool.spool.saw(committed.at)
            return committed
        return await self.spool.write(work, draft)


def make_embedder(settings: Settings) -> Embedder:
    """The embeddings client that the settings describe."""
    key = settings.embedding_api_key
    return Embedder(
        settings.embedding_urls,
        settings.embedding_model,
        settings.embedding_dimensions,
        api_key=key.get_secret_value() if key is not None else None,
        timeout_s=settings.embedding_timeout_s,
        concurrency=settings.embedding_concurrency,
    )
