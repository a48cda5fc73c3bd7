"""Put into a copy of the services by versions.py, never into what is shipped: a release of QWEN that misbehaves."""

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

CHAT = "/v1/chat/completions"
# The gate's own questions are answered: what comes after them is not.
GOOD_FIRST = 3
SLOW_S = 3.0
ERROR = {"error": {"code": "chaos_pretended", "type": "server_error", "message": "This release errs.", "param": None}}


class Misbehaving:
    """Around a route's own application, inside of what counts requests and takes their times."""

    def __init__(self, app: ASGIApp, how: str) -> None:
        self._app, self._how, self._seen = app, how, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._seen += 1
        if self._how == "never_ready":
            await JSONResponse({"status": "not ready"}, status_code=503)(scope, receive, send)
        elif self._how == "erring" and self._seen > GOOD_FIRST:
            await JSONResponse(ERROR, status_code=500)(scope, receive, send)
        else:
            if self._how == "slow" and self._seen > GOOD_FIRST:
                await asyncio.sleep(SLOW_S)
            await self._app(scope, receive, send)


def misbehave(app: Starlette, how: str) -> None:
    """`never_ready`: /ready refuses; `erring`, `slow`: chat does, after the first answers. Raises ValueError."""
    path = {"never_ready": "/ready", "erring": CHAT, "slow": CHAT}[how]
    routes: list[Any] = [route for route in app.routes if isinstance(route, Route) and route.path == path]
    if not routes:
        raise ValueError(f"QWEN has no route {path}")
    for route in routes:
        route.app = Misbehaving(route.app, how)
