"""The routes of the tier and their headers."""

import asyncio
import json
import logging
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from devmentor.common import context
from devmentor.common.auth import TenantKeys, bearer_key, key_matches
from devmentor.common.errors import ApiError, unavailable
from devmentor.qwen import metrics
from devmentor.qwen.answers import Served, Streamed
from devmentor.qwen.delivery import ClientLeftError, EventStream, LateAnswer, finished
from devmentor.qwen.pbml import Caller
from devmentor.qwen.requests import ChatRequest, parse_chat, parse_completion, parse_embedding, parse_json, parse_purge
from devmentor.qwen.service import Qwen
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Traces

audit = logging.getLogger("devmentor.audit")

_NOT_KNOWN_YET = Served("pending", "pending", "pending")


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
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/cache/purge", self.purge, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/v1/traces/{request_id}", self.trace, methods=["GET"]),
        ]

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        caller = self._caller(request)
        return await self._generate(request, caller, parse_chat(parse_json(await request.body()), request.headers))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        caller = self._caller(request)
        return await self._generate(
            request, caller, parse_completion(parse_json(await request.body()), request.headers)
        )

    async def _generate(self, request: Request, caller: Caller, parsed: ChatRequest) -> Response:
        task = asyncio.create_task(self.qwen.chat(parsed, caller, context.request_id.get() or ""))
        try:
            in_time = await finished(request.receive, task, self._settings.ping_s if parsed.stream else None)
        except ClientLeftError:
            return self._left(parsed.form.endpoint)
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

    async def purge(self, request: Request) -> Response:
        """POST /v1/cache/purge, for the admin key: cached answers of a tenant, of a model, or all are taken back."""
        key = bearer_key(request.headers.get("authorization"))
        if not self._settings.admin_key_sha256 or not key_matches(key, self._settings.admin_key_sha256):
            raise ApiError(403, "admin_key_needed", "a purge needs the admin key")
        scope, reason = parse_purge(parse_json(await request.body()))
        # A purge that was begun is ended, whoever still listens.
        done = await asyncio.shield(asyncio.create_task(self.qwen.purge(scope)))
        audit.warning(
            "cache purged",
            extra={
                "who": f"admin key {self._settings.admin_key_sha256[:8]} from {request.client and request.client.host}",
                "tenant": scope.tenant or "*",
                "model": scope.model or "*",
                "reason": reason,
                "l1": done.l1,
                "l2": done.l2,
                "semantic": done.semantic,
                "failed": done.failed,
                "semantic_problem": done.semantic_problem,
                "generation": done.generation,
            },
        )
        shortfall = done.shortfall()
        if shortfall is not None:
            raise unavailable(*shortfall)
        removed = {"l1": done.l1, "l2": done.l2} | ({"semantic": done.semantic} if done.semantic is not None else {})
        return JSONResponse(
            {
                "generation": done.generation,
                "purged": removed,
                "complete": done.complete,
                "failed": done.failed,
                "instance": self._settings.instance,
            }
        )

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
        return Caller(tenant.name, request.headers["authorization"], tenant.budget)

    def _headers(self, served: Served) -> dict[str, str]:
        return {
            "X-DevMentor-Served-By": served.by,
            "X-DevMentor-Cache": served.cache,
            "X-DevMentor-Context": served.context,
            "X-DevMentor-Instance": self._settings.instance,
            **served.headers,
        }

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "devmentor"}

    @staticmethod
    def _left(endpoint: str) -> Response:
        metrics.CANCELLED.labels(endpoint).inc()
        return Response(status_code=499)  # nobody reads it; logs and metrics do
