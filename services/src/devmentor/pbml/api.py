"""The HTTP API: accept, say how far, forget, and fetch context."""

import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import procrastinate
from prometheus_client import Counter
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from devmentor.common import names
from devmentor.common.auth import TenantKeys
from devmentor.common.errors import ApiError, invalid, unavailable
from devmentor.common.health import Check, Readiness
from devmentor.common.web import create_app
from devmentor.pbml import jobs, tokens
from devmentor.pbml.checks import dependencies
from devmentor.pbml.context import ContextService, context_version
from devmentor.pbml.db import Connection, Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import Embedder
from devmentor.pbml.index import Index
from devmentor.pbml.models import ContextRequest, DocumentRequest, TurnRequest, storable, watermark
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import acceptance, generations, idempotency, ledger, operations
from devmentor.pbml.store.acceptance import Accepted

log = logging.getLogger(__name__)

ACCEPTED = Counter("pbml_accepted", "Acknowledged items", ["kind", "durability"])
ACCEPTED_BYTES = Counter("pbml_accepted_bytes", "Acknowledged text", ["kind"])
REPLAYED = Counter("pbml_replayed", "Requests answered again by their Idempotency-Key")

_CONVERSATION_ID = re.compile(names.CONVERSATION_ID)

R = TypeVar("R", bound=BaseModel)
Accept = Callable[[Connection], Awaitable[Accepted]]


class Service:
    """The parts that requests share."""

    def __init__(self, settings: Settings) -> None:
        if settings.tenants_file is None:
            raise ValueError("PBML_TENANTS_FILE is not set")
        self.settings = settings
        self.keys = TenantKeys(settings.tenants_file)
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

    # -- endpoints ----------------------------------------------------------------------------

    async def post_document(self, request: Request) -> JSONResponse:
        """202: the document's next version and its job are on the quorum."""
        tenant = self.keys.authenticate(request).name
        body = await _parse(request, DocumentRequest)
        size = _bounded("document", body.text, self.settings.max_document_bytes, "text")

        async def accept(c: Connection) -> Accepted:
            return await acceptance.accept_document(c, tenant, body.id, body.title, body.metadata, body.text)

        return await self._accept(request, tenant, "document", body.model_dump(), size, accept)

    async def post_turn(self, request: Request) -> JSONResponse:
        """202: a turn of a conversation, which the next fetch for it sees."""
        tenant = self.keys.authenticate(request).name
        body = await _parse(request, TurnRequest)
        size = _bounded("turn", body.content, self.settings.max_turn_bytes, "content")

        async def accept(c: Connection) -> Accepted:
            # The tilde can not begin a client's document id, so the two never meet.
            name = f"~turn/{body.conversation_id}/{uuid.uuid4().hex}"
            return await acceptance.accept_turn(c, tenant, body.conversation_id, name, body.role, body.content)

        return await self._accept(request, tenant, "turn", body.model_dump(), size, accept)

    async def delete_document(self, request: Request) -> JSONResponse:
        """202: gone for readers from now on; the job removes what is left of it."""
        tenant = self.keys.authenticate(request).name
        document_id = _document_id(request)

        async def accept(c: Connection) -> Accepted:
            accepted = await acceptance.accept_deletion(c, tenant, document_id)
            if accepted is None:
                raise _no_document()
            return accepted

        return await self._accept(request, tenant, "deletion", {"id": document_id}, 0, accept)

    async def get_document(self, request: Request) -> JSONResponse:
        """How far the newest version is, and which version is live."""
        tenant = self.keys.authenticate(request).name
        document_id = _document_id(request)
        async with _mapped(), self.database.read() as c:
            row = await ledger.document_status(c, tenant, document_id)
        if row is None:
            raise _no_document()
        times = {name: row.pop(name) for name in ("received_at", "embedded_at", "indexed_at", "live_at")}
        return JSONResponse(
            {
                **row,
                "watermark": watermark(row.pop("seq")),
                **{name: time.isoformat() if time is not None else None for name, time in times.items()},
            }
        )

    async def post_context(self, request: Request) -> JSONResponse:
        """Context for a query, within the token budget."""
        tenant = self.keys.authenticate(request).name
        body = await _parse(request, ContextRequest)
        if len(body.query) > self.settings.max_query_chars:
            raise _too_large("query", self.settings.max_query_chars, "query", "characters")
        if body.token_budget > self.settings.max_token_budget:
            message = f"token_budget is above {self.settings.max_token_budget}"
            raise ApiError(400, "invalid_value", message, param="token_budget")
        async with _mapped():
            return JSONResponse(await self.context.fetch(tenant, body))

    async def get_context_version(self, request: Request) -> JSONResponse:
        """The context_version that a fetch without a watermark would have now, without the fetch."""
        tenant = self.keys.authenticate(request).name
        conversation = request.query_params.get("conversation_id")
        if conversation is not None and not _CONVERSATION_ID.fullmatch(conversation):
            message = f"conversation_id: a name like {names.CONVERSATION_ID} is expected"
            raise ApiError(400, "invalid_value", message, param="conversation_id")
        async with _mapped(), self.database.read() as c:
            versions = await generations.current(c, tenant, conversation)
        return JSONResponse({"context_version": context_version(*versions, [])})

    # -- acceptance ---------------------------------------------------------------------------

    async def _accept(
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
            async with _mapped():
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


def application(settings: Settings) -> Starlette:
    """The API as an ASGI application."""
    service = Service(settings)

    async def worker() -> str:
        async with service.database.read() as c:
            state = await operations.queue_state(c)
        said = f"{state['workers']} alive, {state['todo']} jobs wait, oldest pending {state['oldest_s']:.0f} s"
        if not state["workers"]:
            raise RuntimeError(said)
        return said

    async def counted_by() -> str:
        return service.counter.name

    readiness = Readiness(
        "pbml",
        [
            *dependencies(settings, service.database, service.index, service.embedder, settings.replica),
            Check("workers", worker, required=False),
            Check("tokens", counted_by, required=False),
        ],
    )
    return create_app(
        "pbml",
        readiness=readiness,
        routes=[
            Route("/v1/documents", service.post_document, methods=["POST"]),
            Route("/v1/documents/{document_id:path}", service.get_document, methods=["GET"]),
            Route("/v1/documents/{document_id:path}", service.delete_document, methods=["DELETE"]),
            Route("/v1/turns", service.post_turn, methods=["POST"]),
            Route("/v1/context", service.post_context, methods=["POST"]),
            Route("/v1/context/version", service.get_context_version, methods=["GET"]),
        ],
        lifespan=service.running,
        max_body_bytes=settings.max_body_bytes,
        max_concurrent=settings.max_concurrent_requests,
    )


async def _parse(request: Request, model: type[R]) -> R:
    raw = await request.body()
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            raise ApiError(400, "invalid_json", "the body is not JSON") from None
        raise invalid(error) from None


@asynccontextmanager
async def _mapped() -> AsyncIterator[None]:
    """What the database could not do, as the client needs to hear it."""
    try:
        yield
    except DatabaseUnavailable as error:
        log.warning("database unavailable", extra={"reason": str(error)})
        raise unavailable("database_unavailable", "the store is away; nothing was written, send it again") from error
    except OutcomeUnknown as error:
        log.warning("outcome unknown", extra={"reason": str(error)})
        raise unavailable(
            "outcome_unknown", "not acknowledged: send it again, with the same Idempotency-Key to write it once"
        ) from error


def _document_id(request: Request) -> str:
    """The path's document, a client's or a turn's; ApiError 400 where it can be none."""
    name: str = request.path_params["document_id"]
    try:
        return storable(name)
    except ValueError as error:
        raise ApiError(400, "invalid_value", f"document_id: {error}", param="document_id") from None


def _no_document() -> ApiError:
    return ApiError(404, "document_not_found", "no such document")


def _bounded(what: str, text: str, limit: int, param: str) -> int:
    """The text's size in bytes; ApiError 413 above the limit."""
    size = len(text.encode())
    if size > limit:
        raise _too_large(what, limit, param)
    return size


def _too_large(what: str, limit: int, param: str, unit: str = "bytes") -> ApiError:
    return ApiError(413, f"{what}_too_large", f"the {what} is larger than {limit} {unit}", param=param)
