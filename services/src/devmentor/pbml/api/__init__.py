"""The HTTP API: accept, say how far, forget, and fetch context."""

from typing import Any, cast

from starlette.applications import Starlette

from devmentor.common.health import Check, Readiness
from devmentor.common.web import create_app
from devmentor.pbml.api import digest
from devmentor.pbml.api.admin import Admin
from devmentor.pbml.api.context import Context
from devmentor.pbml.api.conversations import Conversations
from devmentor.pbml.api.digest import Digest
from devmentor.pbml.api.documents import Documents
from devmentor.pbml.api.openapi import Endpoint, document
from devmentor.pbml.api.pins import Pins
from devmentor.pbml.api.service import Service, make_embedder
from devmentor.pbml.api.usage import UsageReport
from devmentor.pbml.checks import dependencies
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import operations

__all__ = ["Service", "application", "endpoints", "make_embedder", "openapi"]


def endpoints(service: Service) -> list[Endpoint]:
    """Every endpoint but the operator's. Of two that a path fits, the first is taken."""
    return [
        *Documents(service).endpoints(),
        *Conversations(service).endpoints(),
        *Context(service).endpoints(),
        *Pins(service).endpoints(),
        *UsageReport(service).endpoints(),
        *Digest(service).endpoints(),
        *Admin(service, openapi).endpoints(),
    ]


def openapi() -> dict[str, Any]:
    """The API's OpenAPI document."""
    # Its table names handlers and calls none: it can be had without settings, keys and clients.
    return document(endpoints(cast(Service, None)))


def application(settings: Settings) -> Starlette:
    """The API as an ASGI application."""
    service = Service(settings)

    async def worker() -> str:
        async with service.database.read() as c:
            state = await operations.queue_state(c)
        said = f"{state['workers']} alive, {state['todo']} jobs wait, oldest pending {state['oldest_s']:.0f} s"
        if not state["workers"]:
            raise RuntimeError(said)
        return said

    async def counted_by() -> str:
        return service.counter.name

    readiness = Readiness(
        "pbml",
        [
            *dependencies(
                settings,
                service.database,
                service.index,
                service.embedder,
                settings.replica,
                service.spool.spool if service.spool is not None else None,
                fetches_without=service.state is not None,
            ),
            Check("workers", worker, required=False),
            Check("tokens", counted_by, required=False),
            *digest.checks(service),
        ],
    )
    return create_app(
        "pbml",
        readiness=readiness,
        routes=[endpoint.route() for endpoint in endpoints(service)],
        lifespan=service.running,
        max_body_bytes=settings.max_body_bytes,
        max_concurrent=settings.max_concurrent_requests,
    )
