"""Runs a service under systemd: mutual TLS, READY and WATCHDOG, drain before stop, new certificates on SIGHUP."""

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from devmentor.common import tasks, tls
from devmentor.common.health import Readiness
from devmentor.common.notify import feed_watchdog, notify
from devmentor.common.settings import ServiceSettings

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, readiness: Readiness, drain_delay_s: float, alive: Callable[[], bool]
    ) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._drain_delay_s = drain_delay_s
        self._alive = alive
        self._watchdog: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets=None)
        if self.started:
            self._watchdog = asyncio.create_task(feed_watchdog(self._alive), name="watchdog")
            notify("READY=1", "STATUS=serving")

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        # The listener stays open while load balancers learn from /ready that we leave:
        # closing it first would fail the requests that they send in between.
        notify("STOPPING=1", "STATUS=draining")
        self._readiness.drain()
        if not self.force_exit:
            await asyncio.sleep(self._drain_delay_s)
        await super().shutdown(sockets=None)
        await tasks.end(self._watchdog)


def run(app: Starlette, settings: ServiceSettings, *, alive: Callable[[], bool] = lambda: True) -> None:
    """Serve until SIGTERM or SIGINT. `alive` is asked before each feeding of systemd's watchdog."""
    context: ssl.SSLContext | None = None
    if settings.tls_cert and settings.tls_key and settings.tls_ca:
        context = tls.server_context(settings.tls_cert, settings.tls_key, settings.tls_ca)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than the gateway keeps an idle server connection: it closes first
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        ssl_context_factory=(lambda _config, _default: context) if context is not None else None,
    )
    server = _Server(config, app.state.readiness, settings.drain_delay_s, alive)

    async def main() -> None:
        if context is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, tls.reload)
        await server.serve()

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(main())
