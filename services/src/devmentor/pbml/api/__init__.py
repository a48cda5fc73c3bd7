"""The HTTP API: accept, say how far, forget, and fetch context."""

from starlette.applications import Starlette

from devmentor.common.health import Check, Readiness
from devmentor.common.web import create_app
from devmentor.pbml.api.context import Context
from devmentor.pbml.api.conversations import Conversations
from devmentor.pbml.api.documents import Documents
from devmentor.pbml.api.pins import Pins
from devmentor.pbml.api.service import Service, make_embedder
from devmentor.pbml.checks import dependencies
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import operations

__all__ = ["Service", "application", "make_embedder"]


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
            *dependencies(settings, service.database, service.index, service.embedder, settings.replica),
            Check("workers", worker, required=False),
            Check("tokens", counted_by, required=False),
        ],
    )
    return create_app(
        "pbml",
        readiness=readiness,
        routes=[
            *Documents(service).routes(),
            *Conversations(service).routes(),
            *Context(service).routes(),
            *Pins(service).routes(),
        ],
        lifespan=service.running,
        max_body_bytes=settings.max_body_bytes,
        max_concurrent=settings.max_concurrent_requests,
    )
