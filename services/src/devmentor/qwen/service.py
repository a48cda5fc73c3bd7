"""The way of a request through the tier.

    cache -> context -> engine -> answer, stored and written back
                          '-> (no answer) cached, if old -> secondary model -> what PBML found -> 503

Whatever answered, the answer says so.
"""

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from devmentor.common.errors import ApiError, unavailable
from devmentor.qwen import completions, metrics, sse
from devmentor.qwen.cache import AnswerCache, Entry, Lookup
from devmentor.qwen.context import Assembled, assemble, quote_chunk, token_budget
from devmentor.qwen.engine import Engine, EngineError, EngineStream
from devmentor.qwen.pbml import Caller, Found, Pbml, PbmlUnavailableError
from devmentor.qwen.requests import ChatRequest, EmbeddingRequest, cache_key
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Trace, Traces

log = logging.getLogger(__name__)

_NO_VERSION = ""  # of answers that no context went into
_BACKGROUND_MAX = 1000
_QUERY_CHARS = 8000  # of a question that context is searched for; PBML takes no longer query


@dataclass(frozen=True, slots=True)
class Served:
    """What the response headers tell."""

    by: str
    cache: str
    context: str = "none"


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is complete."""

    payload: bytes
    served: Served


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that comes in blocks of bytes, each of whole events. `close` must be called, begun or not."""

    blocks: AsyncGenerator[bytes]
    close: Callable[[], Awaitable[None]]
    served: Served


@dataclass(slots=True)
class _Job:
    """One chat request and what was learned about it on the way."""

    request: ChatRequest
    caller: Caller
    request_id: str
    key: str
    lookup: Lookup = field(default_factory=Lookup)
    found: Found | None = None
    context: str = "none"
    version: str | None = _NO_VERSION
    trace: Trace | None = None

    @property
    def cache_header(self) -> str:
        return "miss" if self.request.cache.read else "bypass"

    def served(self, by: str) -> Served:
        if self.trace is not None:
            self.trace.served_by = by
        return Served(by, self.cache_header, self.context)

    @property
    def storable(self) -> bool:
        """Whether the answer is one for the cache: made with everything that belongs into it."""
        return self.request.cache.write and self.context != "degraded" and self.version is not None


class Qwen:
    """The tier's logic; `app` gives it HTTP."""

    def __init__(
        self, settings: QwenSettings, engines: dict[str, Engine], cache: AnswerCache, pbml: Pbml, traces: Traces
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._cache = cache
        self._pbml = pbml
        self._traces = traces
        self._background: set[asyncio.Task[None]] = set()

    # -- chat ---------------------------------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest, caller: Caller, request_id: str) -> Whole | Streamed:
        """Answer a chat request. Raises ApiError."""
        engine = self._engine(request.model, "chat")
        with_context = request.wants_context and self._pbml.configured
        mode = "context" if with_context else "plain"
        job = _Job(
            request, caller, request_id, cache_key("chat", caller.tenant, request.body, mode, request.conversation)
        )
        if with_context:
            await self._learn_version(job)
        if request.cache.read:
            job.lookup = await self._cache.lookup(caller.tenant, job.key, job.version)
            if job.lookup.hit is not None:
                return self._from_cache(job, job.lookup.hit, f"cache-{job.lookup.level}", "hit")
        messages = request.messages
        if with_context:
            messages = (await self._with_context(job, engine)).messages
        try:
            return await self._ask(job, engine, messages, "engine")
        except EngineError as error:
            return await self._fall_back(job, error, messages)

    async def _learn_version(self, job: _Job) -> None:
        if job.request.watermark is not None:
            # Who wants to read an own write is not served from before it: nothing cached counts as fresh.
            job.version = None
            return
        version = await self._pbml.version(job.caller, job.request.conversation)
        job.version = version.text
        if not version.current:
            job.context = "degraded"

    async def _with_context(self, job: _Job, engine: Engine) -> Assembled:
        """The messages with context; without, where PBML or the context length says so."""
        request = job.request
        messages = request.messages
        length = await engine.context_length()
        question = request.question[:_QUERY_CHARS]
        if not question or length is None:
            job.context = "none" if not question else "degraded"
            return Assembled(messages)
        budget = await token_budget(
            messages,
            context_length=length,
            answer_tokens=min(request.answer_tokens or self._settings.answer_tokens, length // 2),
            share=self._settings.context_share,
            count=engine.count_tokens,
        )
        if not budget:
            job.context = "none"
            return Assembled(messages)
        try:
            job.found = await self._pbml.context(
                job.caller,
                question,
                conversation=request.conversation,
                watermark=request.watermark,
                token_budget=budget,
            )
        except PbmlUnavailableError:
            job.context = "degraded"
            metrics.CONTEXT.labels("unavailable").inc()
            return Assembled(messages)
        assembled = await assemble(
            messages, job.found.chunks, job.found.turns, budget=budget, count=engine.count_tokens
        )
        # The version that the text was read at; the one the lookup was made with may be a moment older.
        job.version = job.found.version
        job.context = "degraded" if job.found.degraded else "none" if assembled.empty else "ok"
        metrics.CONTEXT.labels(job.context).inc()
        if self._settings.trace_size:
            job.trace = Trace(
                job.request_id, job.caller.tenant, request.model, context=job.context, provenance=assembled.provenance
            )
        return assembled

    async def _ask(self, job: _Job, engine: Engine, messages: list[dict[str, Any]], served_by: str) -> Whole | Streamed:
        """One engine's answer. Raises EngineError where there is none."""
        request = job.request
        body = {**request.body, "model": engine.model, "messages": messages}
        body.pop("metadata", None)
        if request.stream:
            # Usage is always asked for: the cache needs it; the client sees it only on its own request.
            body["stream_options"] = {**(request.body.get("stream_options") or {}), "include_usage": True}
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._record(job, raw)
        if request.stream:
            stream = await self._open_stream(job, engine, raw, served_by)
            return stream
        payload = await engine.complete(raw)
        served = job.served(served_by)
        metrics.ANSWERS.labels("chat", served_by).inc()
        self._after(job, engine.model, payload, store=served_by == "engine")
        return Whole(payload, served)

    def _record(self, job: _Job, raw: bytes) -> None:
        if not self._settings.trace_size:
            return
        if job.trace is None:
            job.trace = Trace(job.request_id, job.caller.tenant, job.request.model, context=job.context)
        job.trace.engine_body = raw
        self._traces.add(job.trace)

    async def _open_stream(self, job: _Job, engine: Engine, raw: bytes, served_by: str) -> Streamed:
        stream = await engine.stream(raw)
        metrics.ANSWERS.labels("chat", served_by).inc()
        blocks = self._relay(job, engine, stream, store=served_by == "engine")
        return Streamed(blocks, stream.close, job.served(served_by))

    async def _relay(self, job: _Job, engine: Engine, stream: EngineStream, *, store: bool) -> AsyncGenerator[bytes]:
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
                self._after(job, engine.model, payload, store=store)
            yield sse.DONE
        except EngineError as error:
            # Headers and tokens are with the client already: it is told in the stream, as OpenAI does it.
            yield sse.data(unavailable("engine_stream_broken", f"the answer broke off: {error}").body())

    # -- other ways to answer -----------------------------------------------------------------------------------------

    async def _fall_back(self, job: _Job, error: EngineError, messages: list[dict[str, Any]]) -> Whole | Streamed:
        request = job.request
        log.warning("falling back", extra={"model": request.model, "kind": error.kind})
        if job.lookup.stale is not None:
            return self._from_cache(job, job.lookup.stale, "cache-stale", "stale")
        secondary = self._settings.models[request.model].secondary
        if secondary is not None:
            try:
                return await self._ask(job, self._engines[secondary], messages, "secondary")
            except EngineError as second:
                log.warning("secondary model failed too", extra={"model": secondary, "kind": second.kind})
        excerpts = await self._excerpts(job)
        if excerpts and request.accepts_prose:
            completion = completions.degraded(request.model, excerpts)
            payload = json.dumps(completion, ensure_ascii=False).encode("utf-8", "replace")
            return self._whole_or_replayed(job, payload, job.served("degraded"))
        raise self._no_engine(request.model, error)

    async def _excerpts(self, job: _Job) -> list[str]:
        """What PBML found; asked now where the engine was away before context could be measured against it."""
        found = job.found
        if found is None and job.request.wants_context and self._pbml.configured and job.request.question:
            try:
                found = await self._pbml.context(
                    job.caller,
                    job.request.question[:_QUERY_CHARS],
                    conversation=None,
                    watermark=job.request.watermark,
                    token_budget=self._settings.answer_tokens,
                )
            except PbmlUnavailableError:
                return []
            job.context = "degraded" if found.degraded else "ok"
        chunks = found.chunks if found is not None else []
        return [quote_chunk(number, chunk) for number, chunk in enumerate(chunks[:5], start=1)]

    def _no_engine(self, model: str, error: EngineError) -> ApiError:
        wait = math.ceil(self._engines[model].breaker.retry_after_s) or 1
        return unavailable("engine_unavailable", f"no engine answers for {model}, and nothing is cached: {error}", wait)

    def _from_cache(self, job: _Job, entry: Entry, by: str, header: str) -> Whole | Streamed:
        if job.trace is None and self._settings.trace_size:
            job.trace = Trace(job.request_id, job.caller.tenant, job.request.model, context=entry.context)
            self._traces.add(job.trace)
        if job.trace is not None:
            job.trace.served_by = by
        known = entry.context if job.context != "degraded" else "degraded"
        return self._whole_or_replayed(job, entry.payload, Served(by, header, known))

    def _whole_or_replayed(self, job: _Job, payload: bytes, served: Served) -> Whole | Streamed:
        metrics.ANSWERS.labels("chat", served.by).inc()
        self._write_back(job, payload)
        if not job.request.stream:
            return Whole(payload, served)
        events = completions.replay(json.loads(payload), include_usage=job.request.include_usage)
        return Streamed(_as_blocks(b"".join(events)), _nothing, served)

    # -- embeddings ---------------------------------------------------------------------------------------------------

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Whole:
        """Answer an embeddings request. Raises ApiError."""
        engine = self._engine(request.model, "embedding")
        key = cache_key("embeddings", caller.tenant, request.body)
        lookup = Lookup()
        header = "miss" if request.cache.read else "bypass"
        if request.cache.read:
            lookup = await self._cache.lookup(caller.tenant, key, _NO_VERSION)
            if lookup.hit is not None:
                return self._embedded(lookup.hit.payload, f"cache-{lookup.level}", "hit")
        try:
            payload = await engine.complete(json.dumps(request.body).encode())
        except EngineError as error:
            if lookup.stale is not None:
                return self._embedded(lookup.stale.payload, "cache-stale", "stale")
            # Another model's vectors live in another space, but whoever configured it as secondary says they fit.
            secondary = self._settings.models[request.model].secondary
            if secondary is None:
                raise self._no_engine(request.model, error) from error
            body = json.dumps({**request.body, "model": secondary}).encode()
            try:
                return self._embedded(await self._engines[secondary].complete(body), "secondary", header)
            except EngineError as second:
                raise self._no_engine(request.model, second) from second
        if request.cache.write:
            self._spawn(self._cache.store(caller.tenant, key, _NO_VERSION, payload, "none"))
        return self._embedded(payload, "engine", header)

    @staticmethod
    def _embedded(payload: bytes, by: str, header: str) -> Whole:
        metrics.ANSWERS.labels("embeddings", by).inc()
        return Whole(payload, Served(by, header))

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def _after(self, job: _Job, model: str, payload: bytes, *, store: bool) -> None:
        """Store an engine's answer and write the turn back, without keeping the client waiting."""
        try:
            usage = json.loads(payload).get("usage") or {}
        except (ValueError, AttributeError):
            return
        metrics.TOKENS.labels(model, "prompt").inc(usage.get("prompt_tokens") or 0)
        metrics.TOKENS.labels(model, "answer").inc(usage.get("completion_tokens") or 0)
        if store and job.storable:
            assert job.version is not None
            self._spawn(self._cache.store(job.caller.tenant, job.key, job.version, payload, job.context))
        self._write_back(job, payload)

    def _write_back(self, job: _Job, payload: bytes) -> None:
        conversation = job.request.conversation
        if conversation is not None and self._pbml.configured:
            answer = completions.answer_text(json.loads(payload))
            self._spawn(self._add_turns(job, conversation, answer))

    async def _add_turns(self, job: _Job, conversation: str, answer: str) -> None:
        turns = [("user", job.request.question), ("assistant", answer)]
        for role, content in turns:
            if not content:
                continue
            try:
                await self._pbml.add_turn(job.caller, conversation, role, content, f"{job.request_id}-{role}")
            except PbmlUnavailableError:
                metrics.TURNS.labels("lost").inc()
                return  # an answer without its question would be a lie in the conversation
            metrics.TURNS.labels("written").inc()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._background) >= _BACKGROUND_MAX:
            work.close()
            log.error("too much background work, one item dropped")
            return
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())

    async def drain(self, limit_s: float) -> None:
        """Wait for what is still being stored and written back."""
        if self._background:
            await asyncio.wait(set(self._background), timeout=limit_s)

    def _engine(self, model: str, kind: str) -> Engine:
        engine = self._engines.get(model)
        if engine is None:
            raise ApiError(
                404, "model_not_found", f"there is no model {model!r}; GET /v1/models lists them", param="model"
            )
        if engine.kind != kind:
            raise ApiError(400, "wrong_model_kind", f"{model} is a model for {engine.kind}, not {kind}", param="model")
        return engine


async def _as_blocks(events: bytes) -> AsyncGenerator[bytes]:
    yield events


async def _nothing() -> None:
    pass
