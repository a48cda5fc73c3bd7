"""The engine behind a model: llama.cpp or vLLM, or anything that speaks OpenAI's protocol, on a private port.

A call takes a slot of the pool and passes the breaker. What goes wrong before the first byte of an answer is an
EngineError, and the caller has other ways to answer; a stream that breaks later raises StreamBrokenError
(`engine_stream`).
"""

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp

from devmentor.common import context
from devmentor.common.errors import ApiError
from devmentor.qwen import metrics
from devmentor.qwen.breaker import Breaker, BreakerLimits, Pass
from devmentor.qwen.engine_errors import EngineError, as_engine_error, checked, engine_message
from devmentor.qwen.engine_stream import EngineStream
from devmentor.qwen.pool import Pool

log = logging.getLogger(__name__)

_CHAT = "/v1/chat/completions"
_EMBEDDINGS = "/v1/embeddings"
# Counters that grow while tokens are computed, not only when an answer is whole.
_PROGRESS = re.compile(rb"^vllm:(?:prompt|generation)_tokens_total\S* \S+$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Times are seconds."""

    pool_size: int
    pool_wait_s: float
    deadline_s: float
    connect_s: float
    silence_s: float
    stuck_s: float
    breaker: BreakerLimits


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an engine is asked."""

    path: str | None = None
    """Of the endpoint; None for the kind's own."""
    wait_s: float | None = None
    """How long it may wait for its turn; None where the pool's own limit holds."""
    last_resort: bool = False
    """Nothing else can answer, so a breaker that opened by the error rate lets it through."""
    begin: Callable[[], None] | None = None
    """Called when the turn has come."""


_NO_TERMS = Terms()


class Engine:
    """One model's engine: calls, and what is known about it (context length, progress)."""

    def __init__(self, model: str, url: str, kind: str, limits: EngineLimits, session: aiohttp.ClientSession) -> None:
        self.model = model
        self.kind = kind
        self._url = url.rstrip("/")
        self._limits = limits
        self._session = session
        self._whole = aiohttp.ClientTimeout(total=limits.deadline_s, sock_connect=limits.connect_s)
        self._streamed = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s, sock_read=limits.silence_s)
        self._brief = aiohttp.ClientTimeout(total=2.0, sock_connect=limits.connect_s)
        self.pool = Pool(model, limits.pool_size, limits.pool_wait_s)
        self.breaker = Breaker(model, limits.breaker)
        self._context_length: int | None = None
        self._moved_at: float | None = None
        self._progress_seen: bytes | None = None
        self._problem = "not probed yet"
        self._ttft = metrics.TTFT.labels(model)
        self._seconds = metrics.ENGINE_SECONDS.labels(model)
        self._moving_gauge = metrics.ENGINE_MOVING.labels(model)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def complete(self, body: bytes, terms: Terms = _NO_TERMS) -> bytes:
        """A whole answer to a body. Raises EngineError, or ApiError where the request is refused."""
        passed, since = await self._slot(terms)
        try:
            start = time.monotonic()
            async with self._judged(passed):
                response = await self._post(body, self._whole, terms.path)
                async with response:
                    payload = await response.read()
                    self._check(response.status, payload)
                if self.kind == "chat":
                    checked(payload)
                elif not payload.startswith(b"{"):
                    raise EngineError("protocol", "the engine's answer is not a JSON object")
            self._seconds.observe(time.monotonic() - start)
            return payload
        finally:
            self.pool.release(since)

    async def stream(self, body: bytes, terms: Terms = _NO_TERMS) -> EngineStream:
        """A stream whose first event is here already. Raises like `complete`. The caller must `close` it."""
        passed, since = await self._slot(terms)
        response: aiohttp.ClientResponse | None = None
        try:
            start = time.monotonic()
            async with self._judged(passed, whole=False):
                response = await self._post(body, self._streamed, terms.path)
                if response.status != 200:
                    self._check(response.status, await response.read())
                stream = EngineStream(self, response, passed, since)
                await stream.begin()
            self._ttft.observe(time.monotonic() - start)
            return stream
        except BaseException:
            if response is not None:
                response.close()
            self.pool.release(since)
            raise

    async def _slot(self, terms: Terms) -> tuple[Pass, float]:
        """Past the breaker and into the pool; when the slot was given. Without a slot the breaker is told nothing."""
        passed = self.breaker.allow(last_resort=terms.last_resort)
        if passed is None:
            metrics.ENGINE_ERRORS.labels(self.model, "breaker_open").inc()
            raise EngineError("breaker_open", f"the breaker of {self.model} is open")
        try:
            since = await self.pool.acquire(terms.wait_s)
        except BaseException:
            passed.abandon()
            raise
        if terms.begin is not None:
            terms.begin()
        return passed, since

    @contextlib.asynccontextmanager
    async def _judged(self, passed: Pass, *, whole: bool = True) -> AsyncIterator[None]:
        """Turns what goes wrong into EngineError and tells the breaker how it went; not `whole`: how it began."""
        try:
            yield
        except ApiError:
            self.moved()  # a refusal is an answer
            passed.success()
            raise
        except (EngineError, aiohttp.ClientError, OSError, TimeoutError) as error:
            passed.error()
            wrapped = as_engine_error(error)
            metrics.ENGINE_ERRORS.labels(self.model, wrapped.kind).inc()
            log.warning("engine failed", extra={"model": self.model, "kind": wrapped.kind, "reason": str(wrapped)})
            if wrapped is error:
                raise
            raise wrapped from error
        except BaseException:
            passed.abandon()
            raise
        else:
            self.moved()
            if whole:
                passed.success()
            else:
                passed.began()

    async def _post(self, body: bytes, times: aiohttp.ClientTimeout, path: str | None = None) -> aiohttp.ClientResponse:
        path = path or (_CHAT if self.kind == "chat" else _EMBEDDINGS)
        headers = {"Content-Type": "application/json", "X-Request-Id": context.request_id.get() or ""}
        try:
            return await self._session.post(self._url + path, data=body, headers=headers, timeout=times)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # An idle connection that the engine closed just now: nothing was answered, a new one decides.
            return await self._session.post(self._url + path, data=body, headers=headers, timeout=times)

    def _check(self, status: int, payload: bytes) -> None:
        if status == 200:
            return
        message, code = engine_message(payload)
        if status in (400, 404, 413, 415, 422):
            raise ApiError(400, code or "refused_by_engine", message or f"the engine refused the request ({status})")
        if status == 429:
            raise ApiError(429, "engine_busy", message or "the engine is busy", headers={"Retry-After": "1"})
        raise EngineError(f"status_{status}", f"status {status}: {message or 'no reason given'}")

    # -- what is known about it ---------------------------------------------------------------------------------------

    async def context_length(self) -> int | None:
        """Tokens of a prompt and its answer together; None where the engine does not say. Asked once."""
        if self._context_length is None:
            self._context_length = await self._ask_context_length()
        return self._context_length

    async def _ask_context_length(self) -> int | None:
        try:
            async with self._session.get(f"{self._url}/v1/models", timeout=self._brief) as response:
                models = (await response.json(content_type=None))["data"]
            first = next((entry for entry in models if entry.get("id") == self.model), models[0])
            length = first.get("max_model_len") or (first.get("meta") or {}).get("n_ctx")
            return int(length) if length else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError) as error:
            log.warning("context length not known", extra={"model": self.model, "reason": repr(error)})
            return None

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of a text by the engine's own tokenizer; None where it does not say.

        llama.cpp reads `content` and vLLM reads `prompt`; each ignores the other's name.
        """
        body = {"model": self.model, "content": text, "prompt": text, "add_special_tokens": False}
        try:
            async with self._session.post(f"{self._url}/tokenize", json=body, timeout=self._brief) as response:
                if response.status != 200:
                    return None
                answer = await response.json(content_type=None)
            return int(answer["count"]) if "count" in answer else len(answer["tokens"])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
            return None

    def moved(self) -> None:
        """The engine was seen to make progress just now."""
        self._moved_at = time.monotonic()

    @property
    def moving(self) -> bool:
        """Whether progress was seen recently, and nothing since says that the engine is away."""
        return not self._problem and self._moved_at is not None and self._still_s() < self._limits.stuck_s

    @property
    def problem(self) -> str:
        """Why it is not `moving`, in words; "" where it is."""
        if self.moving:
            return ""
        return self._problem or f"no token for {self._still_s():.0f} s"

    def _still_s(self) -> float:
        return time.monotonic() - (self._moved_at or 0.0)

    async def probe(self) -> None:
        """One look at the engine. An engine that says it is healthy while no token moves is not believed.

        Where an answer came in the last moments nothing is asked. Else a token is generated; a busy engine queues
        that, and then its own counters must be seen to grow from one probe to the next.
        """
        # What makes it ready closes its breaker, too: it would be sent requests and answer them by fallbacks.
        passed = self.breaker.canary()
        if passed is not None or self._moved_at is None or self._still_s() >= min(1.0, self._limits.stuck_s / 4):
            try:
                await self._generate_one()
                self.moved()
                self._problem = ""
                if passed is not None:
                    passed.success()
            except TimeoutError:
                if await self._counters_grew():
                    self.moved()
                    self._problem = ""
                elif self._moved_at is None:
                    self._problem = "no token generated in time"
            except (EngineError, ApiError, aiohttp.ClientError, OSError) as error:
                self._problem = f"{type(error).__name__}: {error}"[:200]
                if passed is not None:
                    passed.error()
            finally:
                if passed is not None:
                    passed.abandon()
        else:
            self._problem = ""
        self._moving_gauge.set(self.moving)

    async def _generate_one(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self._limits.stuck_s / 4, sock_connect=self._limits.connect_s)
        if self.kind == "chat":
            question = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1, "temperature": 0}
        else:
            question = {"input": "ping"}
        body = json.dumps({"model": self.model, **question}).encode()
        response = await self._post(body, timeout)
        async with response:
            payload = await response.read()
            self._check(response.status, payload)
            if self.kind == "chat":
                checked(payload)  # as a client's answer: a breaker closes by it

    async def _counters_grew(self) -> bool:
        seen = await self._counters()
        grew = seen is not None and self._progress_seen is not None and seen != self._progress_seen
        self._progress_seen = seen
        return grew

    async def _counters(self) -> bytes | None:
        """A digest of the engine's token counters: llama.cpp's slots, or vLLM's metrics."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
            async with self._session.get(f"{self._url}/slots", timeout=self._brief) as response:
                if response.status == 200:
                    slots = await response.json(content_type=None)
                    return hashlib.sha256(json.dumps(slots).encode()).digest()
            async with self._session.get(f"{self._url}/metrics", timeout=self._brief) as response:
                lines = _PROGRESS.findall(await response.read())
                return hashlib.sha256(b"\n".join(lines)).digest() if lines else None
        return None
