"""/v1/context: what bears on a question."""

from starlette.requests import Request
from starlette.responses import JSONResponse

from devmentor.common.errors import ApiError
from devmentor.pbml.api import answers
from devmentor.pbml.api.openapi import Endpoint
from devmentor.pbml.api.requests import mapped, parse, parse_query, too_large
from devmentor.pbml.api.service import Service
from devmentor.pbml.context import context_version
from devmentor.pbml.models import ContextRequest, VersionQuery
from devmentor.pbml.store import generations


class Context:
    """Endpoints of the fetch."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """The table of this theme."""
        return [
            Endpoint(
                "POST",
                "/v1/context",
                self.post_context,
                "What bears on a query, within a token budget",
                200,
                answers.Found,
                body=ContextRequest,
                errors=(409,),
            ),
            Endpoint(
                "GET",
                "/v1/context/version",
                self.get_context_version,
                "The context_version that a fetch would have now",
                200,
                answers.ContextVersion,
                query=VersionQuery,
            ),
        ]

    async def post_context(self, request: Request) -> JSONResponse:
        """Context for a query, within the token budget."""
        tenant = self._service.keys.authenticate(request).name
        body = await parse(request, ContextRequest)
        if len(body.query) > self._service.settings.max_query_chars:
            raise too_large("query", self._service.settings.max_query_chars, "query", "characters")
        if body.token_budget > self._service.settings.max_token_budget:
            message = f"token_budget is above {self._service.settings.max_token_budget}"
            raise ApiError(400, "invalid_value", message, param="token_budget")
        if body.watermark is not None and self._service.spool is not None:
            await self._service.spool.wait_for(body.watermark)
        async with mapped():
            return JSONResponse(await self._service.context.fetch(tenant, body))

    async def get_context_version(self, request: Request) -> JSONResponse:
        """The context_version that a fetch without a watermark would have now, without the fetch."""
        tenant = self._service.keys.authenticate(request).name
        conversation = parse_query(request, VersionQuery).conversation_id
        async with mapped(), self._service.database.read() as c:
            versions = await generations.current(c, tenant, conversation)
        return JSONResponse({"context_version": context_version(*versions, [])})
