"""The semantic cache at work: bounded in time, and a miss wherever anything is away.

What it keeps outlives the memory of purges. So it is neither read nor written while purges may have been forgotten, and
an answer has the generation of the purges that were known when its question came in, as in the exact cache.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from devmentor.common.errors import ApiError
from devmentor.qwen import metrics, semantic
from devmentor.qwen.engine import Engine
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.purge import Purges
from devmentor.qwen.requests import ChatRequest
from devmentor.qwen.semantic import Answer, Candidate, Match
from devmentor.qwen.settings import QwenSettings

log = logging.getLogger(__name__)

_FAILURES = 3  # in a row, after which
_REST_S = 5.0  # it is left alone for so long
_STORE_S = 5.0
_SWEEP_S = 300.0

Vector = Sequence[float]


class Store(Protocol):
    """What `semantic_store.SemanticStore` does."""

    async def search(self, wanted: Candidate, vector: Vector, threshold: float, floor: int) -> list[Match]: ...
    async def put(self, asked: Candidate, vector: Vector, answer: Answer) -> None: ...
    async def remove(self, asked: Candidate) -> None: ...
    async def forget(self, scope: str, generation: int) -> int: ...
    async def sweep(self) -> int: ...
    async def close(self) -> None: ...


class SemanticCache:
    """Asks the embedding engine and the store. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        settings: QwenSettings,
        embedding: Engine,
        store: Store,
        purges: Purges,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._embedding = embedding
        self._store = store
        self._purges = purges
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0

    def candidate(self, request: ChatRequest, tenant: str, version: str | None, mode: str) -> Candidate | None:
        """What of a request may be answered by meaning; None: nothing."""
        return semantic.candidate(
            request,
            tenant,
            version,
            mode=mode,
            model=self._embedding.model,
            most_chars=self._settings.semantic_question_chars,
        )

    async def lookup(self, wanted: Candidate) -> Match | None:
        """The answer of the nearest question that may share it, within the budget of time."""
        floor = self._purges.floor(wanted.partition)
        if floor is None or self._clock() < self._rests_until:
            metrics.SEMANTIC_LOOKUPS.labels("purges_unknown" if floor is None else "rest").inc()
            return None
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._settings.semantic_budget_s):
                vector = await self._embed(wanted.question)
                near = await self._store.search(wanted, vector, self._settings.semantic_threshold, floor)
        except Exception as error:  # whatever a client raises: a request goes on without
            self._failed(error)
            return None
        finally:
            metrics.SEMANTIC_SECONDS.observe(time.perf_counter() - start)
        self._failures = 0
        for match in near:
            if semantic.may_share(wanted.question, match.question):
                metrics.SEMANTIC_LOOKUPS.labels("hit").inc()
                return match
        metrics.SEMANTIC_LOOKUPS.labels("told_apart" if near else "miss").inc()
        return None

    async def store(self, asked: Candidate, answer: Answer) -> None:
        """Keep an answer, if it is whole and was not purged. Nobody waits for this."""
        too_large = len(answer.payload) > self._settings.cache_entry_bytes
        if too_large or not semantic.complete(json.loads(answer.payload)) or self._clock() < self._rests_until:
            return
        try:
            async with asyncio.timeout(_STORE_S):
                vector = await self._embed(asked.question)
                if self._purged(asked, answer):
                    return
                await self._store.put(asked, vector, answer)
            if self._purged(asked, answer):  # while it was on its way to where the purge was, too
                await self._store.remove(asked)
        except Exception as error:
            self._failed(error)

    def _purged(self, asked: Candidate, answer: Answer) -> bool:
        floor = self._purges.floor(asked.partition)
        return floor is None or answer.generation < floor

    async def forget(self, scope: str, generation: int) -> int:
        """Remove what a purge covers, however long it takes; how many. Raises what the store's client raises."""
        return await self._store.forget(scope, generation)

    async def run(self) -> None:
        """Remove what is too old or too much, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                while await self._store.sweep():
                    pass
            except Exception as error:
                log.warning("semantic cache not swept", extra={"reason": f"{type(error).__name__}: {error}"[:300]})

    async def close(self) -> None:
        await self._store.close()

    async def _embed(self, text: str) -> Vector:
        body = json.dumps({"model": self._embedding.model, "input": text}).encode()
        try:
            answer: Mapping[str, list[Mapping[str, Vector]]] = json.loads(await self._embedding.complete(body))
            return answer["data"][0]["embedding"]
        except (EngineError, ApiError, LookupError, TypeError, ValueError) as error:
            raise EngineError("embedding", f"no vector: {error}") from error

    def _failed(self, error: Exception) -> None:
        reason = "late" if isinstance(error, TimeoutError) else "error"
        metrics.SEMANTIC_LOOKUPS.labels(reason).inc()
        self._failures += 1
        if self._failures >= _FAILURES:
            self._failures = 0
            self._rests_until = self._clock() + _REST_S
            why = f"{type(error).__name__}: {error}"[:300]
            log.warning("semantic cache left alone for a moment", extra={"reason": why})
