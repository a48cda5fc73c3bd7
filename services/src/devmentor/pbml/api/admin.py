"""/v1/export, everything of a tenant; /v1/openapi.json, what this API is."""

import json
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from typing import Any

from psycopg.rows import DictRow
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from devmentor.pbml.api import answers
from devmentor.pbml.api.openapi import Endpoint
from devmentor.pbml.api.requests import mapped
from devmentor.pbml.api.service import Service
from devmentor.pbml.store import listing

_GROUP_BYTES = 8 * 1024 * 1024
_TURNS = 200


class Admin:
    """Endpoints about everything."""

    def __init__(self, service: Service, document: Callable[[], dict[str, Any]]) -> None:
        self._service = service
        self._make = document

    def endpoints(self) -> list[Endpoint]:
        """The table of this theme."""
        return [
            Endpoint(
                "GET", "/v1/export", self.export, "Everything of the tenant, one JSON object a line", 200, answer=None
            ),
            Endpoint("GET", "/v1/openapi.json", self.get_openapi, "This document", 200, answers.OpenApi, public=True),
        ]

    @cached_property
    def _document(self) -> dict[str, Any]:
        return self._make()

    async def get_openapi(self, _request: Request) -> JSONResponse:
        """The API's description, made of the routes that this release has."""
        return JSONResponse(self._document)

    async def export(self, request: Request) -> Response:
        """Documents in the order of ids, then conversations with their turns in the order in which they were said.

        `document` and `turn` of a line are the bodies that POST takes. The last line has `end` and the counts:
        without it the export is not whole. Each page is a transaction of its own, so what is written meanwhile may be
        in it or not.
        """
        tenant = self._service.keys.authenticate(request).name
        lines = self._lines(tenant)
        async with mapped():
            # The first line tells whether there is a database to read from, while a status can still say so.
            first = await anext(lines)

        async def body() -> AsyncIterator[str]:
            yield first
            async for line in lines:
                yield line

        return StreamingResponse(body(), media_type="application/x-ndjson")

    async def _lines(self, tenant: str) -> AsyncIterator[str]:
        documents = turns = 0
        after: str | None = ""
        while after is not None:
            async with self._service.database.read() as c:
                rows, after = await listing.documents(c, tenant, after, listing.SCAN)
            for ids in groups(rows, _GROUP_BYTES):
                async with self._service.database.read(timeout_s=30) as c:
                    whole = await listing.contents(c, tenant, ids)
                for row in whole:
                    documents += 1
                    yield _line(document=_document(row), version=row["version"], received_at=str(row["received_at"]))
        after = ""
        while after is not None:
            async with self._service.database.read() as c:
                found, after = await listing.conversations(c, tenant, after, listing.SCAN)
            for conversation in (row["conversation_id"] for row in found):
                seq = 0
                while True:
                    async with self._service.database.read(timeout_s=30) as c:
                        page = await listing.turns(c, tenant, conversation, seq, _TURNS)
                    for row in page:
                        turns += 1
                        turn = {"conversation_id": conversation, "role": row["role"], "content": row["content"]}
                        yield _line(turn=turn, received_at=str(row["received_at"]))
                    if len(page) < _TURNS:
                        break
                    seq = page[-1]["seq"]
        yield _line(end={"documents": documents, "turns": turns})


def groups(rows: list[DictRow], limit: int) -> list[list[str]]:
    """Ids of documents in groups of at most `limit` bytes of text; a larger one is alone."""
    found: list[list[str]] = []
    size = 0
    for row in rows:
        if not found or size + row["content_bytes"] > limit:
            found.append([])
            size = 0
        found[-1].append(row["document_id"])
        size += row["content_bytes"]
    return found


def _document(row: DictRow) -> dict[str, Any]:
    return {"id": row["document_id"], "title": row["title"], "metadata": row["metadata"], "text": row["content"]}


def _line(**content: Any) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
