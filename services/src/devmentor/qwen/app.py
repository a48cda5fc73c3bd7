"""HTTP around the tier: routes, headers, streams that ping and notice when their client leaves."""

import asyncio
import contextlib
import json
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from devmentor.common import context, tls
from devmentor.common.auth import TenantKeys, bearer_key, key_matches
from devmentor.common.errors import ApiError
from devmentor.common.health import Check, Readiness
from devmentor.common.web import create_app
from devmentor.qwen import metrics, sse
from devmentor.qwen.cache import L1, L2, AnswerCache
from devmentor.qwen.engine import Engine, EngineLimits
from devmentor.qwen.pbml import Caller, Pbml
from devmentor.qwen.requests import parse_chat, parse_embedding, parse_json
from devmentor.qwen.service import Qwen, Served, Streamed, Whole
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Traces

log = logging.getLogger(__name__)

T = TypeVar("T")

_WRITE_BACK_S = 5.0
_NOT_KNOWN_YET = Served("pending", "pending", "pending")


class ClientLeftError(Exception):
    """The client closed the connection before its answer began."""


async def finished(receive: Receive, task: "asyncio.Task[T]", patience_s: float | None = None) -> bool:
    """Wait for `task`; False where it takes longer than `patience_s`, and goes on.

    Raises ClientLeftError, with the task cancelled, when the client closes the connection first.
    """
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, leaving}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and leaving.done():
            raise ClientLeftError
    except BaseException:
        await _cancel(task)
        raise
    finally:
        await _cancel(leaving)
    return task.done()


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An SSE response. A comment is sent in long silences; a client that leaves ends the engine's work too."""

    def __init__(
        self,
        blocks: AsyncGenerator[bytes],
        close: Callable[[], Awaitable[None]],
        headers: dict[str, str],
        ping_s: float,
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._blocks = blocks
        self._close = close
        self._ping_s = ping_s
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send_all(send))
        pinging = asyncio.create_task(self._ping(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                metrics.CANCELLED.labels("chat").inc()
        finally:
            await _cancel(sending, pinging, leaving)
            await self._blocks.aclose()
            await self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for block in self._blocks:
            self._sent_at = time.monotonic()
            await send({"type": "http.response.body", "body": block, "more_body": True})
        self._sent_at = float("inf")  # nothing may follow the last part
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet >= self._ping_s:
                self._sent_at = time.monotonic()
                await send({"type": "http.response.body", "body": sse.PING, "more_body": True})
            else:
                await asyncio.sleep(min(self._ping_s, self._ping_s - quiet))


class LateAnswer:
    """A stream whose first event is long in coming: headers and pings go out first, and what served the answer is
    told by a comment in the stream. An error is told as an event."""

    def __init__(self, task: "asyncio.Task[Whole | Streamed]") -> None:
        self._task = task

    async def blocks(self) -> AsyncGenerator[bytes]:
        yield sse.PING
        try:
            answer = await asyncio.shield(self._task)
        except ApiError as error:
            yield sse.data(error.body())
            return
        assert isinstance(answer, Streamed)
        served = answer.served
        yield f": served-by={served.by} cache={served.cache} context={served.context}\n\n".encode()
        async for block in answer.blocks:
            yield block

    async def close(self) -> None:
        await _cancel(self._task)
        if not self._task.cancelled() and self._task.exception() is None:
            answer = self._task.result()
            if isinstance(answer, Streamed):
                await answer.blocks.aclose()
                await answer.close()


class Endpoints:
    """The handlers. `qwen` is set while the application's lifespan runs, and nothing is asked before."""

    qwen: Qwen

    def __init__(self, settings: QwenSettings, keys: TenantKeys, traces: Traces) -> None:
        self._settings = settings
        self._keys = keys
        self._traces = traces
        self._started = int(time.time())

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/v1/traces/{request_id}", self.trace, methods=["GET"]),
        ]

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        caller = self._caller(request)
        parsed = parse_chat(parse_json(await request.body()), request.headers)
        task = asyncio.create_task(self.qwen.chat(parsed, caller, context.request_id.get() or ""))
        try:
            in_time = await finished(request.receive, task, self._settings.ping_s if parsed.stream else None)
        except ClientLeftError:
            return self._left("chat")
        if not in_time:
            late = LateAnswer(task)
            return EventStream(late.blocks(), late.close, self._headers(_NOT_KNOWN_YET), self._settings.ping_s)
        answer = task.result()
        headers = self._headers(answer.served)
        if isinstance(answer, Streamed):
            return EventStream(answer.blocks, answer.close, headers, self._settings.ping_s)
        return Response(answer.payload, media_type="application/json", headers=headers)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        caller = self._caller(request)
        parsed = parse_embedding(parse_json(await request.body()), request.headers)
        task = asyncio.create_task(self.qwen.embed(parsed, caller))
        try:
            await finished(request.receive, task)
        except ClientLeftError:
            return self._left("embeddings")
        answer = task.result()
        return Response(answer.payload, media_type="application/json", headers=self._headers(answer.served))

    async def models(self, request: Request) -> Response:
        """GET /v1/models; chat models first."""
        self._caller(request)
        ordered = sorted(self._settings.models, key=lambda name: self._settings.models[name].kind != "chat")
        return JSONResponse({"object": "list", "data": [self._model(name) for name in ordered]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        self._caller(request)
        name = request.path_params["model"]
        if name not in self._settings.models:
            raise ApiError(404, "model_not_found", f"there is no model {name!r}", param="model")
        return JSONResponse(self._model(name))

    async def trace(self, request: Request) -> Response:
        """GET /v1/traces/{request_id}, for the admin key: what this instance sent to the engine."""
        if not self._settings.trace_size:
            raise ApiError(404, "tracing_off", "tracing is off: QWEN_TRACE_SIZE is 0")
        if not key_matches(bearer_key(request.headers.get("authorization")), self._settings.admin_key_sha256):
            raise ApiError(403, "admin_key_needed", "traces hold prompts: the admin key is needed")
        trace = self._traces.get(request.path_params["request_id"])
        if trace is None:
            raise ApiError(404, "trace_not_found", f"{self._settings.instance} has no trace of this request")
        return JSONResponse(
            {
                "request_id": trace.request_id,
                "instance": self._settings.instance,
                "tenant": trace.tenant,
                "model": trace.model,
                "served_by": trace.served_by,
                "engine_body": json.loads(trace.engine_body) if trace.engine_body is not None else None,
                "context": {"state": trace.context, "provenance": trace.provenance},
            }
        )

    def _caller(self, request: Request) -> Caller:
        tenant = self._keys.authenticate(request)
        return Caller(tenant.name, request.headers["authorization"])

    def _headers(self, served: Served) -> dict[str, str]:
        return {
            "X-DevMentor-Served-By": served.by,
            "X-DevMentor-Cache": served.cache,
            "X-DevMentor-Context": served.context,
            "X-DevMentor-Instance": self._settings.instance,
        }

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "devmentor"}

    @staticmethod
    def _left(endpoint: str) -> Response:
        metrics.CANCELLED.labels(endpoint).inc()
        return Response(status_code=499)  # nobody reads it; logs and metrics do


async def _probe_for_ever(engine: Engine, every_s: float) -> None:
    while True:
        try:
            await engine.probe()
        except Exception:
            log.exception("engine probe failed", extra={"model": engine.model})
        await asyncio.sleep(every_s)


@contextlib.asynccontextmanager
async def open_tier(settings: QwenSettings, traces: Traces) -> AsyncIterator[tuple[Qwen, dict[str, Engine]]]:
    """Everything that holds connections. At the end, what is still to be stored or written back is waited for."""
    ours: ssl.SSLContext | None = None
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        ours = tls.client_context(settings.tls_ca, settings.tls_cert, settings.tls_key)
    limits = EngineLimits(
        pool_size=settings.pool_size,
        pool_wait_s=settings.pool_wait_s,
        deadline_s=settings.deadline_s,
        connect_s=settings.connect_s,
        silence_s=settings.silence_s,
        breaker_errors=settings.breaker_errors,
        breaker_open_s=settings.breaker_open_s,
        stuck_s=settings.stuck_s,
    )
    # The pool bounds connections to an engine, not the connector.
    engine_connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    pbml_connector = aiohttp.TCPConnector(limit=100, keepalive_timeout=30, ssl=ours or True)
    async with (
        aiohttp.ClientSession(connector=engine_connector, auto_decompress=False) as engine_session,
        aiohttp.ClientSession(connector=pbml_connector) as pbml_session,
        contextlib.AsyncExitStack() as stack,
    ):
        engines = {
            name: Engine(name, str(model.url), model.kind, limits, engine_session)
            for name, model in settings.models.items()
        }
        cache = AnswerCache(
            L1(settings.cache_l1_bytes, settings.cache_l1_ttl_s),
            L2(
                settings.cache_nodes,
                user=settings.cache_user,
                password=settings.cache_password.get_secret_value(),
                tls=ours,
                budget_s=settings.cache_budget_s,
                keep_s=settings.cache_stale_s,
            )
            if settings.cache_nodes
            else None,
            l2_ttl_s=settings.cache_l2_ttl_s,
            stale_s=settings.cache_stale_s,
            entry_bytes=settings.cache_entry_bytes,
        )
        stack.push_async_callback(cache.close)
        await cache.connect()
        pbml = Pbml(
            settings.pbml_urls, pbml_session, deadline_s=settings.pbml_deadline_s, version_s=settings.context_version_s
        )
        qwen = Qwen(settings, engines, cache, pbml, traces)
        stack.push_async_callback(qwen.drain, _WRITE_BACK_S)
        for engine in engines.values():
            stack.callback(asyncio.create_task(_probe_for_ever(engine, settings.probe_s)).cancel)
        yield qwen, engines


def build(settings: QwenSettings) -> Starlette:
    """The application. Connections open in its lifespan."""
    if settings.tenants_file is None:
        raise ValueError("tenants_file is needed")
    traces = Traces(settings.trace_size)
    endpoints = Endpoints(settings, TenantKeys(settings.tenants_file), traces)
    engines: dict[str, Engine] = {}

    def engine_check(name: str, *, required: bool) -> Check:
        async def probe() -> str:
            engine = engines.get(name)
            problem = engine.problem if engine is not None else "not opened yet"
            if problem:
                raise RuntimeError(problem)
            return "tokens move"

        return Check(f"engine-{name}", probe, required=required)

    stand_ins = {model.secondary for model in settings.models.values()}
    readiness = Readiness(
        "qwen",
        [
            engine_check(name, required=model.kind == "chat" and name not in stand_ins)
            for name, model in settings.models.items()
        ],
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with open_tier(settings, traces) as (qwen, opened):
            endpoints.qwen = qwen
            engines.update(opened)
            yield

    return create_app(
        "qwen",
        readiness=readiness,
        routes=endpoints.routes(),
        lifespan=lifespan,
        max_body_bytes=settings.max_body_bytes,
        max_concurrent=settings.max_concurrent_requests,
    )
