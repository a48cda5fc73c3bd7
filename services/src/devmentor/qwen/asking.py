"""One engine is asked: the body that it gets, the answer whole or as it comes, and what is kept of it."""

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from devmentor.common.errors import ApiError, unavailable
from devmentor.qwen import budget_spending, deadlines
from devmentor.qwen.afterwards import Afterwards
from devmentor.qwen.answers import Job, Whole
from devmentor.qwen.budget_spending import Estimate
from devmentor.qwen.budgets import Budgets
from devmentor.qwen.engine import Engine, Terms
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.engine_stream import EngineStream
from devmentor.qwen.relay import Relay
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Trace, Traces


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

    def __init__(
        self,
        settings: QwenSettings,
        engines: Mapping[str, Engine],
        afterwards: Afterwards,
        traces: Traces,
        budgets: Budgets,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._budgets = budgets
        self._afterwards = afterwards
        self._traces = traces

    async def ask(
        self, job: Job, engine: Engine, messages: list[dict[str, Any]], served_by: str, *, last_resort: bool = False
    ) -> Whole | Relay:
        """One engine's answer. Raises EngineError where there is none."""
        request = job.request
        body = {**request.form.with_messages(request.body, messages), "model": engine.model}
        body.pop("metadata", None)
        if request.stream:
            # Usage is always asked for: the cache needs it; the client sees it only on its own request.
            body["stream_options"] = {**(request.body.get("stream_options") or {}), "include_usage": True}
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._record(job, raw)

        def answered(payload: bytes, resumed: bool = False) -> None:
            store = served_by == "engine" and not resumed
            self._afterwards.answered(job, engine.model, payload, store=store)

        estimate = self._estimate(messages, request.answer_tokens, body)
        reservation = await self._budgets.reserve(job.caller.budget, estimate.total)
        job.headers = reservation.headers
        terms = Terms(request.form.path, deadlines.left_s(job.deadline), last_resort, reservation.begin)
        if request.stream:
            call = engine.stream(raw, terms)
            stream = await budget_spending.streamed(reservation, call, estimate)
            secondary = self._settings.models[request.model].secondary
            resume = None
            if request.continues and served_by == "engine" and secondary is not None:
                resume = partial(self._resume, job, body, self._engines[secondary])
            return Relay(stream, job.served(served_by), request.form.assemble, answered, resume)
        payload = await budget_spending.whole(reservation, engine.complete(raw, terms))
        answered(payload)
        return Whole(payload, job.served(served_by))

    def _estimate(self, messages: list[dict[str, Any]], bound: int | None, body: dict[str, Any]) -> Estimate:
        return budget_spending.chat_estimate(messages, bound or self._settings.answer_tokens, body)

    async def _resume(self, job: Job, body: dict[str, Any], engine: Engine, said: str) -> EngineStream:
        """Another engine's stream that goes on after `said`, within the bound of the whole answer's tokens.

        The text is the beginning of a last message of the assistant's: vLLM wants to be told so by two parameters
        (continue_final_message); llama.cpp takes such a message for it by itself and ignores them.
        """
        bound = job.request.answer_tokens
        body = {**body, "model": engine.model}
        if said:
            body |= {
                "messages": [*body["messages"], {"role": "assistant", "content": said}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            }
        if bound is not None:
            body.pop("max_completion_tokens", None)
            used = await engine.count_tokens(said)
            body["max_tokens"] = max(1, bound - (len(said.encode()) if used is None else used))
        estimate = self._estimate(body["messages"], body.get("max_tokens"), body)
        reservation = await self._budgets.reserve(job.caller.budget, estimate.total)
        raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        call = engine.stream(raw, Terms(begin=reservation.begin))
        return await budget_spending.streamed(reservation, call, estimate)

    def _record(self, job: Job, raw: bytes) -> None:
        if not self._settings.trace_size:
            return
        if job.trace is None:
            job.trace = Trace(job.request_id, job.caller.tenant, job.request.model, context=job.context)
        job.trace.engine_body = raw
        self._traces.add(job.trace)
