"""Embeddings: cache, engine, an old answer, the secondary model."""

import json
from collections.abc import Mapping

from devmentor.qwen import budget_spending, metrics
from devmentor.qwen.afterwards import Afterwards
from devmentor.qwen.answers import NO_VERSION, Served, Whole
from devmentor.qwen.asking import engine_for, no_engine
from devmentor.qwen.budgets import Budgets
from devmentor.qwen.cache import AnswerCache, Lookup
from devmentor.qwen.engine import Engine
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.pbml import Caller
from devmentor.qwen.requests import EmbeddingRequest, cache_key
from devmentor.qwen.settings import QwenSettings


class Embeddings:
    """POST /v1/embeddings."""

    def __init__(
        self,
        settings: QwenSettings,
        engines: Mapping[str, Engine],
        cache: AnswerCache,
        afterwards: Afterwards,
        budgets: Budgets,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._cache = cache
        self._afterwards = afterwards
        self._budgets = budgets

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Whole:
        """Answer an embeddings request. Raises ApiError."""
        engine = engine_for(self._engines, request.model, "embedding")
        key = cache_key("embeddings", caller.tenant, request.body)
        lookup = Lookup()
        header = "miss" if request.cache.read else "bypass"
        if request.cache.read:
            lookup = await self._cache.lookup(caller.tenant, key, NO_VERSION)
            if lookup.hit is not None:
                return self._embedded(lookup.hit.payload, f"cache-{lookup.level}", "hit")
        try:
            payload, limits = await self._ask(engine, request, caller)
        except EngineError as error:
            if lookup.stale is not None:
                return self._embedded(lookup.stale.payload, "cache-stale", "stale")
            # Another model's vectors live in another space, but whoever configured it as secondary says they fit.
            secondary = self._settings.models[request.model].secondary
            if secondary is None:
                raise no_engine(engine, error) from error
            try:
                payload, limits = await self._ask(self._engines[secondary], request, caller)
                return self._embedded(payload, "secondary", header, limits)
            except EngineError as second:
                raise no_engine(engine, second) from second
        if request.cache.write:
            self._afterwards.spawn(self._cache.store(caller.tenant, key, NO_VERSION, payload, "none"))
        return self._embedded(payload, "engine", header, limits)

    async def _ask(self, engine: Engine, request: EmbeddingRequest, caller: Caller) -> tuple[bytes, Mapping[str, str]]:
        tokens = budget_spending.embedding_estimate(request.body["input"]).total
        reservation = await self._budgets.reserve(caller.budget, tokens)
        raw = json.dumps({**request.body, "model": engine.model}).encode()
        return await budget_spending.whole(reservation, engine, raw), reservation.headers

    @staticmethod
    def _embedded(payload: bytes, by: str, header: str, limits: Mapping[str, str] | None = None) -> Whole:
        metrics.ANSWERS.labels("embeddings", by).inc()
        return Whole(payload, Served(by, header, limits=limits or {}))
