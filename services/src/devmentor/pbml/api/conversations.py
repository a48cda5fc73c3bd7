"""/v1/turns and /v1/conversations: what was said, listed and forgotten."""

from starlette.requests import Request
from starlette.responses import JSONResponse

from devmentor.common.errors import ApiError
from devmentor.pbml.api import answers
from devmentor.pbml.api.openapi import Endpoint
from devmentor.pbml.api.requests import bounded, conversation_name, mapped, parse, parse_query, place, times
from devmentor.pbml.api.service import Service, turn_answer
from devmentor.pbml.db import Connection
from devmentor.pbml.models import ConversationsQuery, TurnRequest, TurnsQuery, cursor_of, watermark
from devmentor.pbml.spool.entry import Entry, turn_name
from devmentor.pbml.store import acceptance, listing, removal
from devmentor.pbml.store.acceptance import Accepted


class Conversations:
    """Endpoints of conversations and their turns."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """The table of this theme."""
        one = "/v1/conversations/{conversation_id}"
        return [
            Endpoint(
                "POST",
                "/v1/turns",
                self.post_turn,
                "Accept a turn of a conversation",
                202,
                answers.Acknowledged,
                body=TurnRequest,
                errors=(403,),
                idempotent=True,
            ),
            Endpoint(
                "GET",
                "/v1/conversations",
                self.list_conversations,
                "List conversations, in the order of their ids",
                200,
                answers.Conversations,
                query=ConversationsQuery,
            ),
            Endpoint(
                "GET",
                f"{one}/turns",
                self.list_turns,
                "List a conversation's turns, oldest first",
                200,
                answers.Turns,
                query=TurnsQuery,
            ),
            Endpoint(
                "DELETE",
                one,
                self.delete_conversation,
                "Delete all turns of a conversation: out of every answer from now on",
                202,
                answers.DeletedConversation,
                errors=(404,),
            ),
        ]

    async def post_turn(self, request: Request) -> JSONResponse:
        """202: a turn of a conversation, which the next fetch for it sees."""
        tenant = self._service.keys.authenticate(request).name
        body = await parse(request, TurnRequest)
        size = bounded("turn", body.content, self._service.settings.max_turn_bytes, "content")

        name = turn_name(body.conversation_id)

        async def accept(c: Connection) -> list[Accepted]:
            await self._service.quota.turn(c, tenant, size)
            return [await acceptance.accept_turn(c, tenant, body.conversation_id, name, body.role, body.content)]

        draft = Entry(
            self._service.settings.replica,
            tenant,
            "turn",
            name,
            body.content,
            conversation_id=body.conversation_id,
            role=body.role,
        )
        return await self._service.accept(
            request, tenant, "turn", body.model_dump(), size, accept, draft, answer=turn_answer
        )

    async def list_conversations(self, request: Request) -> JSONResponse:
        """A page of conversations that have turns."""
        tenant = self._service.keys.authenticate(request).name
        query = parse_query(request, ConversationsQuery)
        after = place(query.cursor, str, "")
        async with mapped(), self._service.database.read() as c:
            rows, following = await listing.conversations(c, tenant, after, query.limit, prefix=query.prefix)
        found = [{"conversation_id": r["conversation_id"], "watermark": watermark(r["seq"])} for r in rows]
        return JSONResponse({"conversations": found, "next_cursor": cursor_of(following) if following else None})

    async def list_turns(self, request: Request) -> JSONResponse:
        """A page of a conversation's turns, as they were said. One that does not exist has none."""
        tenant = self._service.keys.authenticate(request).name
        conversation = conversation_name(request)
        query = parse_query(request, TurnsQuery)
        after = place(query.cursor, int, 0)
        if not 0 <= after < 2**63:
            raise ApiError(400, "invalid_cursor", "cursor: not a next_cursor of this listing", param="cursor")
        async with mapped(), self._service.database.read() as c:
            rows = await listing.turns(c, tenant, conversation, after, query.limit)
        following = cursor_of(rows[-1]["seq"]) if len(rows) == query.limit else None
        found = [{"watermark": watermark(row.pop("seq")), **times(row)} for row in rows]
        return JSONResponse({"turns": found, "next_cursor": following})

    async def delete_conversation(self, request: Request) -> JSONResponse:
        """202: no turn that was there is served from now on; workers remove what is left of them.

        Long ones take several transactions, and the answer comes after the last. A 503 leaves some deleted and the
        others not: send it again.
        """
        tenant = self._service.keys.authenticate(request).name
        conversation = conversation_name(request)
        if self._service.spool is not None:
            self._service.spool.refuse_to_overtake(("turn", tenant, conversation), conversation)
        turns, seq = 0, None
        async with mapped():
            while True:
                committed = await self._service.database.write(
                    lambda c: removal.delete_turns(c, tenant, conversation), timeout_s=30
                )
                if self._service.spool is not None:
                    self._service.spool.spool.saw(committed.at)
                deleted, newest = committed.value
                turns, seq = turns + deleted, newest or seq
                if deleted < removal.BATCH:
                    break
        if not turns:
            raise ApiError(404, "conversation_not_found", "no such conversation")
        return JSONResponse({"turns": turns, "watermark": watermark(seq) if seq is not None else None}, status_code=202)
