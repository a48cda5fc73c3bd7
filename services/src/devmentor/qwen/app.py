"""The application: what holds connections, opened and closed in order, and readiness."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator

import aiohttp
from starlette.applications import Starlette

from devmentor.common import tls
from devmentor.common.auth import TenantKeys, TenantsFileError
from devmentor.common.health import Check, Readiness
from devmentor.common.web import create_app
from devmentor.qwen.breaker import BreakerLimits, State
from devmentor.qwen.budget_store import PostgresStore
from devmentor.qwen.budgets import Budgets
from devmentor.qwen.cache import L1, L2, AnswerCache
from devmentor.qwen.endpoints import Endpoints
from devmentor.qwen.engine import Engine, EngineLimits
from devmentor.qwen.pbml import Pbml
from devmentor.qwen.purge import Purges
from devmentor.qwen.purging import Purging
from devmentor.qwen.semantic_cache import SemanticCache
from devmentor.qwen.service import Qwen
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Traces

log = logging.getLogger(__name__)

_WRITE_BACK_S = 5.0


async def _probe_for_ever(engine: Engine, every_s: float) -> None:
    while True:
        try:
            await engine.probe()
        except Exception:
            log.exception("engine probe failed", extra={"model": engine.model})
        await asyncio.sleep(every_s)


@contextlib.asynccontextmanager
async def open_tier(
    settings: QwenSettings, traces: Traces, store: PostgresStore | None
) -> AsyncIterator[tuple[Qwen, dict[str, Engine]]]:
    """Everything that holds connections. At the end, what is still to be stored or written back is waited for."""
    ours: ssl.SSLContext | None = None
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        ours = tls.client_context(settings.tls_ca, settings.tls_cert, settings.tls_key)
    limits = EngineLimits(
        pool_size=settings.pool_size,
        pool_wait_s=settings.pool_wait_s,
        deadline_s=settings.deadline_s,
        connect_s=settings.connect_s,
        silence_s=settings.silence_s,
        stuck_s=settings.stuck_s,
        breaker=BreakerLimits(
            errors=settings.breaker_errors,
            open_s=settings.breaker_open_s,
            error_rate=settings.breaker_error_rate,
            min_volume=settings.breaker_min_volume,
            window_s=settings.breaker_window_s,
        ),
    )
    # The pool bounds connections to an engine, not the connector.
    engine_connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    pbml_connector = aiohttp.TCPConnector(limit=100, keepalive_timeout=30, ssl=ours or True)
    async with (
        aiohttp.ClientSession(connector=engine_connector, auto_decompress=False) as engine_session,
        aiohttp.ClientSession(connector=pbml_connector) as pbml_session,
        contextlib.AsyncExitStack() as stack,
    ):
        engines = {
            name: Engine(name, str(model.url), model.kind, limits, engine_session)
            for name, model in settings.models.items()
        }
        cache = AnswerCache(
            L1(settings.cache_l1_bytes, settings.cache_l1_ttl_s),
            L2(
                settings.cache_nodes,
                user=settings.cache_user,
                password=settings.cache_password.get_secret_value(),
                tls=ours,
                budget_s=settings.cache_budget_s,
                keep_s=settings.cache_stale_s,
            )
            if settings.cache_nodes
            else None,
            l2_ttl_s=settings.cache_l2_ttl_s,
            stale_s=settings.cache_stale_s,
            entry_bytes=settings.cache_entry_bytes,
        )
        stack.push_async_callback(cache.close)
        await cache.connect()
        pbml = Pbml(
            settings.pbml_urls, pbml_session, deadline_s=settings.pbml_deadline_s, version_s=settings.context_version_s
        )
        if store is not None:
            await store.open()
            stack.push_async_callback(store.close)
        budgets = Budgets(store, timeout_s=settings.budget_timeout_s, lend_share=settings.budget_lend_share)
        stack.push_async_callback(budgets.drain)
        stack.callback(asyncio.create_task(budgets.run()).cancel)
        semantic = _semantic_cache(settings, engines, cache.purges)
        if semantic is not None:
            stack.push_async_callback(semantic.close)
            stack.callback(asyncio.create_task(semantic.run()).cancel)
        purging = Purging(cache, semantic)
        await purging.learn()
        qwen = Qwen(settings, engines, cache, pbml, traces, budgets, purging, semantic)
        stack.push_async_callback(qwen.drain, _WRITE_BACK_S)
        for engine in engines.values():
            stack.callback(asyncio.create_task(_probe_for_ever(engine, settings.probe_s)).cancel)
        if settings.cache_nodes:
            stack.callback(asyncio.create_task(purging.run(settings.purge_poll_s)).cancel)
        yield qwen, engines


def _semantic_cache(settings: QwenSettings, engines: dict[str, Engine], purges: Purges) -> SemanticCache | None:
    if settings.semantic_model is None:
        return None
    # Qdrant's client takes seconds of processor time to load.
    from devmentor.qwen.semantic_store import SemanticStore

    return SemanticCache(settings, engines[settings.semantic_model], SemanticStore(settings), purges)


def build(settings: QwenSettings) -> Starlette:
    """The application. Connections open in its lifespan."""
    if settings.tenants_file is None:
        raise ValueError("tenants_file is needed")
    traces = Traces(settings.trace_size)
    keys = TenantKeys(settings.tenants_file)
    if keys.budgeted and settings.database is None:
        raise TenantsFileError(
            f"{settings.tenants_file}: a key has a token budget, which is counted in PostgreSQL: set QWEN_DATABASE"
        )
    store = PostgresStore(settings) if settings.database is not None else None
    endpoints = Endpoints(settings, keys, traces)
    engines: dict[str, Engine] = {}

    def engine_check(name: str, *, required: bool) -> Check:
        async def probe() -> str:
            engine = engines.get(name)
            if engine is None:
                raise RuntimeError("not opened yet")
            if engine.problem:
                raise RuntimeError(engine.problem)
            # Told, not judged: with all instances out for what one client's requests do to engines nobody would answer.
            state = engine.breaker.state
            return "tokens move" if state is State.CLOSED else f"tokens move; breaker {state.name.lower()}"

        return Check(f"engine-{name}", probe, required=required)

    stand_ins = {model.secondary for model in settings.models.values()}
    readiness = Readiness(
        "qwen",
        [
            engine_check(name, required=model.kind == "chat" and name not in stand_ins)
            for name, model in settings.models.items()
        ]
        + ([Check("budgets", store.probe, required=False)] if store is not None else []),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with open_tier(settings, traces, store) as (qwen, opened):
            endpoints.qwen = qwen
            engines.update(opened)
            yield

    return create_app(
        "qwen",
        readiness=readiness,
        routes=endpoints.routes(),
        lifespan=lifespan,
        max_body_bytes=settings.max_body_bytes,
        max_concurrent=settings.max_concurrent_requests,
    )
