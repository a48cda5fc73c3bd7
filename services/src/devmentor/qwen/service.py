"""The way of a request through the tier.

    cache -> context -> engine -> answer, stored and written back
                          '-> (no answer) cached, if old -> secondary model -> what PBML found -> 503

Whatever answered, the answer says so.
"""

import json
import logging
from typing import Any

from devmentor.qwen import completions, metrics
from devmentor.qwen.afterwards import Afterwards
from devmentor.qwen.answers import Job, Served, Streamed, Whole, as_blocks, nothing
from devmentor.qwen.asking import Asking, engine_for, no_engine
from devmentor.qwen.budgets import Budgets
from devmentor.qwen.cache import AnswerCache, Entry
from devmentor.qwen.embedding import Embeddings
from devmentor.qwen.engine import Engine
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.grounding import Grounding
from devmentor.qwen.pbml import Caller, Pbml
from devmentor.qwen.requests import ChatRequest, EmbeddingRequest, cache_key
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Trace, Traces

log = logging.getLogger(__name__)


class Qwen:
    """The tier's logic; `app` gives it HTTP."""

    def __init__(
        self,
        settings: QwenSettings,
        engines: dict[str, Engine],
        cache: AnswerCache,
        pbml: Pbml,
        traces: Traces,
        budgets: Budgets,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._cache = cache
        self._traces = traces
        self._grounding = Grounding(settings, pbml)
        self._afterwards = Afterwards(cache, pbml)
        self._asking = Asking(settings, self._afterwards, traces, budgets)
        self._embeddings = Embeddings(settings, engines, cache, self._afterwards, budgets)

    async def chat(self, request: ChatRequest, caller: Caller, request_id: str) -> Whole | Streamed:
        """Answer a chat request. Raises ApiError."""
        engine = engine_for(self._engines, request.model, "chat")
        with_context = self._grounding.wanted(request)
        mode = "context" if with_context else "plain"
        job = Job(
            request, caller, request_id, cache_key("chat", caller.tenant, request.body, mode, request.conversation)
        )
        if with_context:
            await self._grounding.learn_version(job)
        if request.cache.read:
            job.lookup = await self._cache.lookup(caller.tenant, job.key, job.version)
            if job.lookup.hit is not None:
                return self._from_cache(job, job.lookup.hit, f"cache-{job.lookup.level}", "hit")
        messages = request.messages
        if with_context:
            messages = (await self._grounding.with_context(job, engine)).messages
        try:
            return await self._asking.ask(job, engine, messages, "engine")
        except EngineError as error:
            return await self._fall_back(job, error, messages)

    async def _fall_back(self, job: Job, error: EngineError, messages: list[dict[str, Any]]) -> Whole | Streamed:
        request = job.request
        log.warning("falling back", extra={"model": request.model, "kind": error.kind})
        if job.lookup.stale is not None:
            return self._from_cache(job, job.lookup.stale, "cache-stale", "stale")
        secondary = self._settings.models[request.model].secondary
        if secondary is not None:
            try:
                return await self._asking.ask(job, self._engines[secondary], messages, "secondary")
            except EngineError as second:
                log.warning("secondary model failed too", extra={"model": secondary, "kind": second.kind})
        excerpts = await self._grounding.excerpts(job)
        if excerpts and request.accepts_prose:
            completion = completions.degraded(request.model, excerpts)
            payload = json.dumps(completion, ensure_ascii=False).encode("utf-8", "replace")
            return self._whole_or_replayed(job, payload, job.served("degraded"))
        raise no_engine(self._engines[request.model], error)

    def _from_cache(self, job: Job, entry: Entry, by: str, header: str) -> Whole | Streamed:
        if job.trace is None and self._settings.trace_size:
            job.trace = Trace(job.request_id, job.caller.tenant, job.request.model, context=entry.context)
            self._traces.add(job.trace)
        if job.trace is not None:
            job.trace.served_by = by
        known = entry.context if job.context != "degraded" else "degraded"
        return self._whole_or_replayed(job, entry.payload, Served(by, header, known))

    def _whole_or_replayed(self, job: Job, payload: bytes, served: Served) -> Whole | Streamed:
        metrics.ANSWERS.labels("chat", served.by).inc()
        self._afterwards.write_back(job, payload)
        if not job.request.stream:
            return Whole(payload, served)
        events = completions.replay(json.loads(payload), include_usage=job.request.include_usage)
        return Streamed(as_blocks(b"".join(events)), nothing, served)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Whole:
        """Answer an embeddings request. Raises ApiError."""
        return await self._embeddings.embed(request, caller)

    async def drain(self, limit_s: float) -> None:
        """Wait for what is still being stored and written back."""
        await self._afterwards.drain(limit_s)
