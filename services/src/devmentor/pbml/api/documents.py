"""/v1/documents: accept, list, say how far, try again, forget."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from devmentor.common.errors import ApiError
from devmentor.pbml.api import answers
from devmentor.pbml.api.openapi import Endpoint
from devmentor.pbml.api.requests import bounded, document_name, mapped, no_document, parse, parse_query, place, times
from devmentor.pbml.api.service import Service, document_answer
from devmentor.pbml.db import Connection
from devmentor.pbml.models import DocumentRequest, DocumentsQuery, DocumentsRequest, cursor_of, watermark
from devmentor.pbml.spool.entry import Entry, lane_of
from devmentor.pbml.store import acceptance, ledger, listing, versions
from devmentor.pbml.store.acceptance import Accepted, NewDocument


class Documents:
    """Endpoints of documents."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """The table of this theme."""
        one = "/v1/documents/{document_id:path}"
        return [
            Endpoint(
                "POST",
                "/v1/documents",
                self.post_document,
                "Accept a document's next version",
                202,
                answers.AcceptedDocument,
                body=DocumentRequest,
                errors=(403,),
                idempotent=True,
            ),
            Endpoint(
                "POST",
                "/v1/documents:batch",
                self.post_documents,
                "Accept the next versions of several documents: all, or none",
                202,
                answers.AcceptedDocuments,
                body=DocumentsRequest,
                errors=(403,),
                idempotent=True,
            ),
            Endpoint(
                "GET",
                "/v1/documents",
                self.list_documents,
                "List documents, in the order of their ids",
                200,
                answers.Documents,
                query=DocumentsQuery,
            ),
            Endpoint(
                "POST",
                f"{one}/retry",
                self.retry_document,
                "Run the newest version again that was given up",
                202,
                answers.AcceptedDocument,
                errors=(404, 409),
                idempotent=True,
            ),
            Endpoint("GET", one, self.get_document, "How far it is", 200, answers.DocumentStatus, errors=(404,)),
            Endpoint(
                "DELETE",
                one,
                self.delete_document,
                "Delete a document or a turn: out of every answer from now on",
                202,
                answers.AcceptedDocument,
                errors=(404,),
                idempotent=True,
            ),
        ]

    async def post_document(self, request: Request) -> JSONResponse:
        """202: the document's next version and its job are on the quorum."""
        tenant = self._service.keys.authenticate(request).name
        body = await parse(request, DocumentRequest)
        size = bounded("document", body.text, self._service.settings.max_document_bytes, "text")

        async def accept(c: Connection) -> list[Accepted]:
            await self._service.quota.documents(c, tenant, {body.id: size})
            return [await acceptance.accept_document(c, tenant, body.id, body.title, body.metadata, body.text)]

        draft = Entry(
            self._service.settings.replica,
            tenant,
            "document",
            body.id,
            body.text,
            title=body.title,
            metadata=body.metadata,
        )
        return await self._service.accept(request, tenant, "document", body.model_dump(), size, accept, draft)

    async def post_documents(self, request: Request) -> JSONResponse:
        """202: the documents' next versions and their jobs are on the quorum, in one commit.

        They are not spooled while PostgreSQL is away: a client that has many sends them again later.
        """
        tenant = self._service.keys.authenticate(request).name
        body = await parse(request, DocumentsRequest)
        limit = self._service.settings.max_document_bytes
        sizes = {
            each.id: bounded("document", each.text, limit, f"documents.{number}.text")
            for number, each in enumerate(body.documents)
        }
        if self._service.spool is not None:
            self._service.spool.refuse_while_away()
            for number, name in enumerate(sizes):
                self._service.spool.refuse_to_overtake(lane_of(tenant, name), name, f"documents.{number}.id")
        new = [NewDocument(each.id, each.title, each.metadata, each.text) for each in body.documents]

        async def accept(c: Connection) -> list[Accepted]:
            await self._service.quota.documents(c, tenant, sizes)
            return await acceptance.accept_documents(c, tenant, new)

        def answer(accepted: Sequence[Accepted]) -> dict[str, Any]:
            given = {each.document_id: document_answer([each]) for each in accepted}
            return {
                "watermark": watermark(max(each.seq for each in accepted)),
                "documents": [given[name] for name in sizes],
            }

        total = sum(sizes.values())
        return await self._service.accept(request, tenant, "document", body.model_dump(), total, accept, answer=answer)

    async def delete_document(self, request: Request) -> JSONResponse:
        """202: gone for readers from now on; the job removes what is left of it."""
        tenant = self._service.keys.authenticate(request).name
        document_id = document_name(request)
        if self._service.spool is not None:
            self._service.spool.refuse_to_overtake(lane_of(tenant, document_id), document_id)

        async def accept(c: Connection) -> list[Accepted]:
            accepted = await acceptance.accept_deletion(c, tenant, document_id)
            if accepted is None:
                raise no_document()
            return [accepted]

        return await self._service.accept(request, tenant, "deletion", {"id": document_id}, 0, accept)

    async def get_document(self, request: Request) -> JSONResponse:
        """How far the newest version is, and which version is live."""
        tenant = self._service.keys.authenticate(request).name
        document_id = document_name(request)
        async with mapped(), self._service.database.read() as c:
            row = await ledger.document_status(c, tenant, document_id)
        if row is None:
            raise no_document()
        return JSONResponse({"watermark": watermark(row.pop("seq")), **times(row)})

    async def list_documents(self, request: Request) -> JSONResponse:
        """A page of documents that were not deleted, with their newest version."""
        tenant = self._service.keys.authenticate(request).name
        query = parse_query(request, DocumentsQuery)
        after = place(query.cursor, str, "")
        async with mapped(), self._service.database.read() as c:
            rows, following = await listing.documents(
                c, tenant, after, query.limit, prefix=query.prefix, status=query.status
            )
        return JSONResponse(
            {"documents": [times(row) for row in rows], "next_cursor": cursor_of(following) if following else None}
        )

    async def retry_document(self, request: Request) -> JSONResponse:
        """202: the newest version, which was given up, is queued again with all its tries."""
        tenant = self._service.keys.authenticate(request).name
        document_id = document_name(request)

        async def accept(c: Connection) -> list[Accepted]:
            revived = await versions.revive(c, tenant, document_id)
            if revived is None:
                status = await ledger.document_status(c, tenant, document_id)
                if status is None:
                    raise no_document()
                raise ApiError(409, "not_failed", f"the newest version is {status['status']}, not failed")
            return [Accepted(document_id, *revived)]

        return await self._service.accept(request, tenant, "retry", {"id": document_id}, 0, accept)
