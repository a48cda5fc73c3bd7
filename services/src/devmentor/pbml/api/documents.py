"""/v1/documents: accept, say how far, forget."""

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from devmentor.pbml.api.requests import bounded, document_name, mapped, no_document, parse
from devmentor.pbml.api.service import Service
from devmentor.pbml.db import Connection
from devmentor.pbml.models import DocumentRequest, watermark
from devmentor.pbml.store import acceptance, ledger
from devmentor.pbml.store.acceptance import Accepted


class Documents:
    """Endpoints of documents."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """The routes of this theme."""
        return [
            Route("/v1/documents", self.post_document, methods=["POST"]),
            Route("/v1/documents/{document_id:path}", self.get_document, methods=["GET"]),
            Route("/v1/documents/{document_id:path}", self.delete_document, methods=["DELETE"]),
        ]

    async def post_document(self, request: Request) -> JSONResponse:
        """202: the document's next version and its job are on the quorum."""
        tenant = self._service.keys.authenticate(request).name
        body = await parse(request, DocumentRequest)
        size = bounded("document", body.text, self._service.settings.max_document_bytes, "text")

        async def accept(c: Connection) -> Accepted:
            return await acceptance.accept_document(c, tenant, body.id, body.title, body.metadata, body.text)

        return await self._service.accept(request, tenant, "document", body.model_dump(), size, accept)

    async def delete_document(self, request: Request) -> JSONResponse:
        """202: gone for readers from now on; the job removes what is left of it."""
        tenant = self._service.keys.authenticate(request).name
        document_id = document_name(request)

        async def accept(c: Connection) -> Accepted:
            accepted = await acceptance.accept_deletion(c, tenant, document_id)
            if accepted is None:
                raise no_document()
            return accepted

        return await self._service.accept(request, tenant, "deletion", {"id": document_id}, 0, accept)

    async def get_document(self, request: Request) -> JSONResponse:
        """How far the newest version is, and which version is live."""
        tenant = self._service.keys.authenticate(request).name
        document_id = document_name(request)
        async with mapped(), self._service.database.read() as c:
            row = await ledger.document_status(c, tenant, document_id)
        if row is None:
            raise no_document()
        times = {name: row.pop(name) for name in ("received_at", "embedded_at", "indexed_at", "live_at")}
        return JSONResponse(
            {
                **row,
                "watermark": watermark(row.pop("seq")),
                **{name: time.isoformat() if time is not None else None for name, time in times.items()},
            }
        )
