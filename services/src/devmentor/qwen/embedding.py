"""Embeddings: cache, engine, an old answer, the secondary model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from devmentor.common.errors import ApiError
from devmentor.qwen import budget_spending, deadlines, metrics
from devmentor.qwen.afterwards import Afterwards
from devmentor.qwen.answers import NO_VERSION, Served, Whole
from devmentor.qwen.asking import engine_for, no_engine
from devmentor.qwen.budgets import Budgets
from devmentor.qwen.cache import AnswerCache, Lookup
from devmentor.qwen.engine import Engine, Terms
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.flights import TRY_AGAIN, Flights, Seat
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
        flights: Flights,
        afterwards: Afterwards,
        budgets: Budgets,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._cache = cache
        self._flights = flights
        self._afterwards = afterwards
        self._budgets = budgets

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Whole:
        """Answer an embeddings request. Raises ApiError."""
        engine = engine_for(self._engines, request.model, "embedding")
        deadline = deadlines.after(request.deadline_s)
        async with deadlines.kept(deadline, "embeddings", engine):
            return await self._answer(request, caller, engine, deadline)

    async def _answer(self, request: EmbeddingRequest, caller: Caller, engine: Engine, deadline: float | None) -> Whole:
        key = cache_key("embeddings", caller.tenant, request.body)
        lookup = Lookup()
        if request.cache.read:
            lookup = await self._cache.lookup(key, NO_VERSION, request.cache.stale_s)
            if lookup.hit is not None:
                return _counted(Whole(lookup.hit.payload, Served(f"cache-{lookup.level}", "hit")))
        work = partial(self._make, request, caller, engine, key, lookup, deadline, self._cache.generation)
        about = ("embeddings", key, caller.payer, self._cache.generation, request.cache.stale_s)
        keys = [about] if request.cache.read else []
        joined = self._flights.join(keys)
        if joined is not None:
            try:
                return _counted(await _answer_of(joined))
            except ApiError as error:
                if error.status not in TRY_AGAIN:
                    raise
        return _counted(await _answer_of(self._flights.join(keys) or self._flights.start(keys, work)))

    async def _make(
        self,
        request: EmbeddingRequest,
        caller: Caller,
        engine: Engine,
        key: str,
        lookup: Lookup,
        deadline: float | None,
        generation: int,
    ) -> Whole:
        header = "miss" if request.cache.read else "bypass"
        try:
            payload, limits = await self._ask(engine, request, caller, deadline)
        except EngineError as error:
            if lookup.stale is not None:
                return Whole(lookup.stale.payload, Served("cache-stale", "stale"))
            # Another model's vectors live in another space, but whoever configured it as secondary says they fit.
            secondary = self._settings.models[request.model].secondary
            try:
                if secondary is not None:
                    payload, limits = await self._ask(self._engines[secondary], request, caller, deadline)
                    return Whole(payload, Served("secondary", header, headers=limits))
                if error.kind != "breaker_open":
                    raise
                payload, limits = await self._ask(engine, request, caller, deadline, last_resort=True)
            except EngineError as second:
                raise no_engine(engine, second) from second
        if request.cache.write:
            self._afterwards.store(key, NO_VERSION, payload, "none", generation)
        return Whole(payload, Served("engine", header, headers=limits))

    async def _ask(
        self,
        engine: Engine,
        request: EmbeddingRequest,
        caller: Caller,
        deadline: float | None,
        *,
        last_resort: bool = False,
    ) -> tuple[bytes, Mapping[str, str]]:
        tokens = budget_spending.embedding_estimate(request.body["input"]).total
        reservation = await self._budgets.reserve(caller.budget, tokens)
        raw = json.dumps({**request.body, "model": engine.model}).encode()
        terms = Terms(None, deadlines.left_s(deadline), last_resort, reservation.begin)
        return await budget_spending.whole(reservation, engine.complete(raw, terms)), reservation.headers


async def _answer_of(seat: Seat) -> Whole:
    try:
        made = await seat.begun()
        assert isinstance(made, Whole)
        return made if seat.leads else replace(made, served=replace(made.served, cache="shared", headers={}))
    finally:
        await seat.leave()


def _counted(answer: Whole) -> Whole:
    metrics.ANSWERS.labels("embeddings", answer.served.by).inc()
    return answer
