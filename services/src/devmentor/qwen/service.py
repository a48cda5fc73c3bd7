"""The way of a request through the tier.

    cache -> flight, shared with equal questions -> answer, whole or as it comes, in the form that each one wants

    flight: context -> engine -> stored
                          '-> (no answer) cached, if old -> secondary model -> what PBML found -> 503

Whatever answered, the answer says so.
"""

import json
import logging
from collections.abc import AsyncGenerator, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

from devmentor.common.errors import ApiError, unavailable
from devmentor.qwen import deadlines, metrics, sse
from devmentor.qwen.afterwards import Afterwards
from devmentor.qwen.answers import Job, Served, Streamed, Whole, as_blocks, nothing
from devmentor.qwen.asking import Asking, engine_for, no_engine
from devmentor.qwen.budgets import Budgets
from devmentor.qwen.cache import AnswerCache, Entry
from devmentor.qwen.embedding import Embeddings
from devmentor.qwen.engine import Engine
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.flights import TRY_AGAIN, Flights, LaggedError, Seat
from devmentor.qwen.grounding import Grounding
from devmentor.qwen.pbml import Caller, Pbml
from devmentor.qwen.purge import Purged, Scope
from devmentor.qwen.purging import Purging
from devmentor.qwen.relay import Relay
from devmentor.qwen.requests import ChatRequest, EmbeddingRequest, cache_key
from devmentor.qwen.semantic_cache import SemanticCache
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
        purging: Purging,
        semantic: SemanticCache | None = None,
    ) -> None:
        self._purging = purging
        self._semantic = semantic
        self._settings = settings
        self._engines = engines
        self._cache = cache
        self._traces = traces
        self._grounding = Grounding(settings, pbml)
        self._afterwards = Afterwards(cache, pbml, semantic)
        self._flights = Flights(settings.flight_bytes)
        self._asking = Asking(settings, engines, self._afterwards, traces, budgets)
        self._embeddings = Embeddings(settings, engines, cache, self._flights, self._afterwards, budgets)

    async def chat(self, request: ChatRequest, caller: Caller, request_id: str) -> Whole | Streamed:
        """Answer a chat or a legacy completion. Raises ApiError."""
        engine = engine_for(self._engines, request.model, "chat")
        mode = self._grounding.mode(request)
        job = Job(
            request,
            caller,
            request_id,
            cache_key(request.form.endpoint, caller.tenant, request.body, mode, request.conversation),
        )
        job.generation = self._cache.generation
        job.deadline = deadlines.after(request.deadline_s)
        async with deadlines.kept(job.deadline, request.form.endpoint, engine):
            return await self._answer(job, engine)

    async def _answer(self, job: Job, engine: Engine) -> Whole | Streamed:
        request = job.request
        if self._grounding.wanted(request):
            await self._grounding.learn_version(job)
        if request.cache.read:
            job.lookup = await self._cache.lookup(job.key, job.version, request.cache.stale_s)
            if job.lookup.hit is not None:
                return self._deliver(job, self._from_cache(job, job.lookup.hit, f"cache-{job.lookup.level}", "hit"))
        if self._semantic is not None and request.form.endpoint == "chat":
            near = await self._near(job, self._semantic)
            if near is not None:
                return self._deliver(job, near)
        try:
            return await self._share(job, engine)
        except ApiError as error:
            # A joined flight failed for a reason that need not be this request's: one try more, together with others.
            if not job.joined or error.status not in TRY_AGAIN:
                raise
        return await self._share(job, engine)

    async def _near(self, job: Job, cache: SemanticCache) -> Whole | None:
        """The answer to a question of the same meaning, if there is one."""
        mode = self._grounding.mode(job.request)
        job.semantic = cache.candidate(job.request, job.caller.tenant, job.version, mode)
        job.looked_up_version = job.version
        if job.semantic is None or not job.request.cache.read:
            return None
        match = await cache.lookup(job.semantic)
        if match is None:
            return None
        context = match.context if job.context != "degraded" else "degraded"
        return Whole(match.payload, Served("cache-semantic", "hit", context, match.headers))

    async def _share(self, job: Job, engine: Engine) -> Whole | Streamed:
        """Join the answering of an equal question, or begin it."""
        keys = self._flight_keys(job)
        seat = self._flights.join(keys)
        job.joined = seat is not None
        if seat is None:
            fresh = self._cache.again(job.key, job.version) if keys else None
            if fresh is not None:
                return self._deliver(job, self._from_cache(job, fresh, "cache-l1", "hit"))
            seat = self._flights.start(keys, partial(self._make, job, engine))
        try:
            made = await seat.begun()
            if isinstance(made, Relay) and not job.request.stream:
                made = await _to_its_end(seat, made)
        except BaseException:
            await seat.leave()
            raise
        if isinstance(made, Whole):
            await seat.leave()
        return self._deliver(job, made, seat)

    def _flight_keys(self, job: Job) -> list[Hashable]:
        """What flights may answer the job, the one that it would begin first; none where it wants an answer of its own.

        Beside the question: whose budget pays, so that nobody is refused for another key's; the context's version, or
        the write that is to be read; whether the context is looked for in a hurry; whether it is streamed, and may be
        continued. A whole answer may come from a flight that streams; a stream does not wait for a whole answer.
        """
        request = job.request
        if not request.cache.read:
            return []
        question = (
            job.key,
            job.caller.payer,
            job.generation,
            job.version,
            request.watermark,
            request.cache.stale_s,
            self._grounding.limit_s(job) is not None,
        )
        stream = (*question, "stream", request.continues)
        return [stream] if request.stream else [(*question, "whole"), stream]

    async def _make(self, job: Job, engine: Engine) -> Whole | Relay:
        """An answer, by the first way that leads to one. Raises ApiError."""
        messages = job.request.messages
        if self._grounding.wanted(job.request):
            messages = (await self._grounding.with_context(job, engine)).messages
        try:
            return await self._asking.ask(job, engine, messages, "engine")
        except EngineError as error:
            return await self._fall_back(job, error, messages)

    async def _fall_back(self, job: Job, error: EngineError, messages: list[dict[str, Any]]) -> Whole | Relay:
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
        if error.kind == "breaker_open":
            try:
                return await self._asking.ask(job, self._engines[request.model], messages, "engine", last_resort=True)
            except EngineError as last:
                error = last
        excerpts = await self._grounding.excerpts(job)
        if excerpts and request.accepts_prose:
            completion = request.form.degraded(request.model, excerpts)
            payload = json.dumps(completion, ensure_ascii=False).encode("utf-8", "replace")
            return Whole(payload, job.served("degraded"))
        raise no_engine(self._engines[request.model], error)

    def _from_cache(self, job: Job, entry: Entry, by: str, header: str) -> Whole:
        known = entry.context if job.context != "degraded" else "degraded"
        return Whole(entry.payload, Served(by, header, known))

    def _deliver(self, job: Job, made: Whole | Relay, seat: Seat | None = None) -> Whole | Streamed:
        """The answer in the form that the request wants, with its own headers; its turn is written back."""
        served = replace(made.served, cache="shared", headers={}) if job.joined else made.served
        metrics.ANSWERS.labels(job.request.form.endpoint, served.by).inc()
        self._note(job, served)
        if isinstance(made, Relay):
            assert seat is not None
            return Streamed(self._read(job, seat, made), seat.leave, served)
        self._afterwards.write_back(job, made.payload)
        if not job.request.stream:
            return Whole(made.payload, served)
        events = job.request.form.replay(json.loads(made.payload), include_usage=job.request.include_usage)
        return Streamed(as_blocks(b"".join(events)), nothing, served)

    async def _read(self, job: Job, seat: Seat, relay: Relay) -> AsyncGenerator[bytes]:
        """A stream's events as this request wants them, to their end."""
        try:
            async for block in seat.blocks():
                if not job.request.include_usage:
                    block = [event for event in block if b'"choices":[]' not in event]
                if block:
                    yield b"\n\n".join(block) + b"\n\n"
            if relay.payload is not None:
                self._afterwards.write_back(job, relay.payload)
            yield sse.DONE
        except (EngineError, LaggedError) as error:
            # Headers and tokens are with the client already: it is told in the stream, as OpenAI does it.
            yield sse.data(unavailable("engine_stream_broken", f"the answer broke off: {error}").body())

    def _note(self, job: Job, served: Served) -> None:
        if not self._settings.trace_size:
            return
        if job.trace is None:
            job.trace = Trace(job.request_id, job.caller.tenant, job.request.model, context=served.context)
            self._traces.add(job.trace)
        job.trace.served_by = served.by

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Whole:
        """Answer an embeddings request. Raises ApiError."""
        return await self._embeddings.embed(request, caller)

    async def purge(self, scope: Scope) -> Purged:
        """Take cached answers back."""
        return await self._purging.purge(scope)

    async def drain(self, limit_s: float) -> None:
        """Wait for what is still being stored and written back."""
        await self._afterwards.drain(limit_s)


async def _to_its_end(seat: Seat, relay: Relay) -> Whole:
    """The whole answer that a stream adds up to. Raises ApiError where it does not."""
    try:
        async for _ in seat.blocks():
            pass
    except (EngineError, LaggedError) as error:
        raise unavailable("engine_stream_broken", f"the answer broke off: {error}") from error
    if relay.payload is None:
        raise unavailable("engine_stream_broken", "the stream that this question shared has no whole answer")
    return Whole(relay.payload, relay.served)
