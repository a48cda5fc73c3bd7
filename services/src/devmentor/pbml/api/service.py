"""What the endpoints share: clients, keys, and the one way in which anything is accepted."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
from devmentor.pbml.db import Connection, Database
from devmentor.pbml.embedder import Embedder
from devmentor.pbml.index import Index
from devmentor.pbml.models import watermark
from devmentor.pbml.quota import QuotaCheck
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import idempotency
from devmentor.pbml.store.acceptance import Accepted

ACCEPTED = Counter("pbml_accepted", "Acknowledged items", ["kind", "durability"])
ACCEPTED_BYTES = Counter("pbml_accepted_bytes", "Acknowledged text", ["kind"])
REPLAYED = Counter("pbml_replayed", "Requests answered again by their Idempotency-Key")

Accept = Callable[[Connection], Awaitable[Accepted]]


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
        self.context = ContextService(settings, self.database, self.index, self.embedder, self.counter)

    @asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        """Connections are opened and closed with the application."""
        await self.database.open()
        await self.embedder.open()
        try:
            async with self.queue.open_async(self.database.pool):
                yield
        finally:
            await self.embedder.close()
            await self.index.close()
            await self.database.close()

    async def accept(
        self, request: Request, tenant: str, kind: str, body: dict[str, Any], size: int, accept: Accept
    ) -> JSONResponse:
        """One transaction: idempotency key, version with its text, job, response."""
        key = request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
            raise ApiError(400, "invalid_idempotency_key", "Idempotency-Key must have 1 to 255 printable characters")
        digest = idempotency.request_bytes(f"{request.method} {kind}", body)
        replayed = False

        async def work(c: Connection) -> dict[str, Any]:
            nonlocal replayed
            if key is not None:
                before = await idempotency.claim_key(c, tenant, key, digest)
                replayed = before is not None
                if before is not None:
                    return before
            accepted = await accept(c)
            await jobs.defer(self.queue, c, tenant, accepted)
            response: dict[str, Any] = {"watermark": watermark(accepted.seq)}
            if kind != "turn":
                response |= {"document_id": accepted.document_id, "version": accepted.version}
            if key is not None:
                await idempotency.answer_key(c, tenant, key, response)
            return response

        try:
            async with mapped():
                committed = await self.database.write(work)
        except idempotency.KeyReused:
            raise ApiError(
                422, "idempotency_key_reused", "this Idempotency-Key was used with another request"
            ) from None
        if replayed:
            REPLAYED.inc()
        else:
            ACCEPTED.labels(kind, committed.durability).inc()
            ACCEPTED_BYTES.labels(kind).inc(size)
        headers = {"Idempotency-Replayed": "true"} if replayed else {}
        return JSONResponse({**committed.value, "durability": committed.durability}, status_code=202, headers=headers)


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
