"""One engine is asked: the body that it gets, the answer whole or as it comes, and what is kept of it."""

import json
import logging
import math
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from devmentor.common.errors import ApiError, unavailable
from devmentor.qwen import budget_spending, completions, metrics, sse
from devmentor.qwen.afterwards import Afterwards
from devmentor.qwen.answers import Job, Streamed, Whole
from devmentor.qwen.budgets import Budgets
from devmentor.qwen.engine import Engine
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.engine_stream import EngineStream
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Trace, Traces

log = logging.getLogger(__name__)


def engine_for(engines: Mapping[str, Engine], model: str, kind: str) -> Engine:
    """The engine of a model of that kind. Raises ApiError (404, 400)."""
    engine = engines.get(model)
    if engine is None:
        raise ApiError(404, "model_not_found", f"there is no model {model!r}; GET /v1/models lists them", param="model")
    if engine.kind != kind:
        raise ApiError(400, "wrong_model_kind", f"{model} is a model for {engine.kind}, not {kind}", param="model")
    return engine


def no_engine(engine: Engine, error: EngineError) -> ApiError:
    """What a client is told when nothing is left to answer with."""
    wait = math.ceil(engine.breaker.retry_after_s) or 1
    return unavailable(
        "engine_unavailable", f"no engine answers for {engine.model}, and nothing is cached: {error}", wait
    )


class Asking:
    """Asks engines on behalf of jobs."""

    def __init__(self, settings: QwenSettings, afterwards: Afterwards, traces: Traces, budgets: Budgets) -> None:
        self._settings = settings
        self._budgets = budgets
        self._afterwards = afterwards
        self._traces = traces

    async def ask(self, job: Job, engine: Engine, messages: list[dict[str, Any]], served_by: str) -> Whole | Streamed:
        """One engine's answer. Raises EngineError where there is none."""
        request = job.request
        body = {**request.body, "model": engine.model, "messages": messages}
        body.pop("metadata", None)
        if request.stream:
            # Usage is always asked for: the cache needs it; the client sees it only on its own request.
            body["stream_options"] = {**(request.body.get("stream_options") or {}), "include_usage": True}
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._record(job, raw)
        answer_tokens = request.answer_tokens or self._settings.answer_tokens
        estimate = budget_spending.chat_estimate(messages, answer_tokens, request.body)
        reservation = await self._budgets.reserve(job.caller.budget, estimate.total)
        job.limits = reservation.headers
        if request.stream:
            stream = await budget_spending.streamed(reservation, engine, raw, estimate)
            return self._streamed(job, engine, stream, served_by)
        payload = await budget_spending.whole(reservation, engine, raw)
        served = job.served(served_by)
        metrics.ANSWERS.labels("chat", served_by).inc()
        self._afterwards.answered(job, engine.model, payload, store=served_by == "engine")
        return Whole(payload, served)

    def _record(self, job: Job, raw: bytes) -> None:
        if not self._settings.trace_size:
            return
        if job.trace is None:
            job.trace = Trace(job.request_id, job.caller.tenant, job.request.model, context=job.context)
        job.trace.engine_body = raw
        self._traces.add(job.trace)

    def _streamed(self, job: Job, engine: Engine, stream: EngineStream, served_by: str) -> Streamed:
        metrics.ANSWERS.labels("chat", served_by).inc()
        blocks = self._relay(job, engine, stream, store=served_by == "engine")
        return Streamed(blocks, stream.close, job.served(served_by))

    async def _relay(self, job: Job, engine: Engine, stream: EngineStream, *, store: bool) -> AsyncGenerator[bytes]:
        """The engine's events as they come; then the answer is stored and written back."""
        usage_wanted = job.request.include_usage
        try:
            async for block in stream.blocks():
                if not usage_wanted:
                    block = [event for event in block if b'"choices":[]' not in event]
                if block:
                    yield b"\n\n".join(block) + b"\n\n"
            try:
                completion = completions.assemble(stream.payloads)
            except completions.BrokenStreamError as error:
                log.warning("stream not cached", extra={"reason": str(error)})
            else:
                payload = json.dumps(completion, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
                self._afterwards.answered(job, engine.model, payload, store=store)
            yield sse.DONE
        except EngineError as error:
            # Headers and tokens are with the client already: it is told in the stream, as OpenAI does it.
            yield sse.data(unavailable("engine_stream_broken", f"the answer broke off: {error}").body())
