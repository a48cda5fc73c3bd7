"""/v1/turns: what was said in a conversation."""

import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from devmentor.pbml.api.requests import bounded, parse
from devmentor.pbml.api.service import Service
from devmentor.pbml.db import Connection
from devmentor.pbml.models import TurnRequest
from devmentor.pbml.store import acceptance
from devmentor.pbml.store.acceptance import Accepted


class Conversations:
    """Endpoints of conversations and their turns."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """The routes of this theme."""
        return [Route("/v1/turns", self.post_turn, methods=["POST"])]

    async def post_turn(self, request: Request) -> JSONResponse:
        """202: a turn of a conversation, which the next fetch for it sees."""
        tenant = self._service.keys.authenticate(request).name
        body = await parse(request, TurnRequest)
        size = bounded("turn", body.content, self._service.settings.max_turn_bytes, "content")

        async def accept(c: Connection) -> Accepted:
            # The tilde can not begin a client's document id, so the two never meet.
            name = f"~turn/{body.conversation_id}/{uuid.uuid4().hex}"
            return await acceptance.accept_turn(c, tenant, body.conversation_id, name, body.role, body.content)

        return await self._service.accept(request, tenant, "turn", body.model_dump(), size, accept)
