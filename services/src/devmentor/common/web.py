"""The Starlette application of a service: request ids, limits, metrics, errors and the operator's endpoints."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from devmentor.common import context
from devmentor.common.errors import EXCEPTION_HANDLERS, ApiError, internal
from devmentor.common.health import Readiness

log = logging.getLogger("devmentor.access")

REQUESTS = Counter("devmentor_http_requests", "Requests answered", ["service", "route", "method", "code"])
DURATION = Histogram(
    "devmentor_http_request_duration_seconds",
    "Time to the response's first byte",
    ["service", "route", "method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
IN_FLIGHT = Gauge("devmentor_http_requests_in_flight", "Requests being answered", ["service"])

# Seconds that a whole body may take to arrive: 32 MiB at 4 Mbit/s. The gateway's limit is on a body's beginning only.
BODY_SECONDS = 70.0

_OPERATOR_PATHS = frozenset({"/health", "/ready", "/metrics"})


class RequestMiddleware:
    """Request id, limits of the body and of concurrency, access log and metrics; streams pass through untouched."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: str,
        readiness: Readiness,
        max_body_bytes: int,
        max_concurrent: int,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._service = service
        self._readiness = readiness
        self._max_body = max_body_bytes
        self._max_concurrent = max_concurrent
        self._body_seconds = body_seconds
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = context.accept_request_id(headers.get("x-request-id"))
        context.request_id.set(request_id)
        context.tenant.set(None)
        start, status, first_byte = time.monotonic(), 500, None

        async def send_counted(message: Message) -> None:
            nonlocal status, first_byte
            if message["type"] == "http.response.start":
                status, first_byte = message["status"], time.monotonic()
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = request_id
                if self._readiness.draining:
                    # Else a client may send its next request just when we close the idle connection.
                    answer["connection"] = "close"
            await send(message)

        work = scope["path"] not in _OPERATOR_PATHS
        if work:
            self._in_flight += 1
            IN_FLIGHT.labels(self._service).set(self._in_flight)
        try:
            refused = self._refuse(headers) if work else None
            if refused is not None:
                await refused.response()(scope, receive, send_counted)
            else:
                await self._app(scope, self._limited(receive), send_counted)
        except Exception:
            log.exception("unhandled error")
            if first_byte is not None:
                raise  # part of the answer is out: only a cut connection can say that it is not whole
            await internal().response()(scope, receive, send_counted)
        finally:
            if work:
                self._in_flight -= 1
                IN_FLIGHT.labels(self._service).set(self._in_flight)
            self._account(scope, status, start, first_byte, work)

    def _refuse(self, headers: Headers) -> ApiError | None:
        if self._in_flight > self._max_concurrent:
            # 429, not 503: the gateway counts a 5xx as an error and would eject a healthy server.
            return ApiError(429, "overloaded", "too many requests in flight", headers={"Retry-After": "1"})
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body:
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        return ApiError(
            413, "body_too_large", f"the body is larger than {self._max_body} bytes", headers={"Connection": "close"}
        )

    def _too_slow(self) -> ApiError:
        return ApiError(
            408,
            "request_timeout",
            f"the body did not arrive within {self._body_seconds:g} s",
            headers={"Connection": "close"},
        )

    def _limited(self, receive: Receive) -> Receive:
        seen, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._body_seconds

        async def limited() -> Message:
            nonlocal seen, whole
            try:
                # After the body comes the client's going away, at any time.
                async with asyncio.timeout_at(None if whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            whole = whole or not message.get("more_body", False)
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._max_body:
                    raise self._too_large()
            return message

        return limited

    def _account(self, scope: Scope, status: int, start: float, first_byte: float | None, work: bool) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else "unmatched"
        took = (first_byte or time.monotonic()) - start
        REQUESTS.labels(self._service, path, scope["method"], status).inc()
        DURATION.labels(self._service, path, scope["method"]).observe(took)
        log.log(
            logging.INFO if work else logging.DEBUG,
            "request",
            extra={
                "method": scope["method"],
                "route": path,
                "status": status,
                "ms": round(took * 1000, 1),
                "total_ms": round((time.monotonic() - start) * 1000, 1),
            },
        )


async def _health(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "alive"})


async def _metrics(_request: Request) -> Response:
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def operator_routes(readiness: Readiness) -> list[Route]:
    """GET /health, /ready and /metrics."""

    async def ready(_request: Request) -> JSONResponse:
        report = await readiness.report()
        return JSONResponse(report.body, status_code=200 if report.ready else 503)

    return [
        Route("/health", _health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
    ]


def create_app(
    service: str,
    *,
    readiness: Readiness,
    routes: Sequence[BaseRoute] = (),
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[Any]] | None = None,
    max_body_bytes: int = 16 * 1024 * 1024,
    max_concurrent: int = 512,
    body_seconds: float = BODY_SECONDS,
) -> Starlette:
    """A service's application. `readiness` is kept in `app.state.readiness`: the runner drains it."""
    app = Starlette(
        routes=[*operator_routes(readiness), *routes],
        middleware=[
            Middleware(
                RequestMiddleware,
                service=service,
                readiness=readiness,
                max_body_bytes=max_body_bytes,
                max_concurrent=max_concurrent,
                body_seconds=body_seconds,
            )
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )
    app.state.readiness = readiness
    return app
