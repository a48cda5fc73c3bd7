"""Async client of PBML. Any replica takes any call, so they are one: asked in turn, within a deadline.

    async with Client(urls, key, ssl_context=tls.client_context(ca, cert, key_file)) as pbml:
        mark = await pbml.ingest("readme", text, title="README")
        found = await pbml.context("how is it installed?", token_budget=2000, watermark=mark)

A write is sent again, with one Idempotency-Key, until it is acknowledged or the deadline is over: it is done once.
After Unavailable it may have been done or not; with an `idempotency_key` of one's own sending it later is safe too.
"""

import asyncio
import json
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

REST_S = 5.0
_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0


class Unavailable(Exception):
    """No replica gave an answer within the deadline; each one's reason."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons) or "no replica is configured")
        self.reasons = reasons


class Refused(Exception):
    """The request itself is the fault. `code` is PBML's, `status` HTTP's."""

    def __init__(self, status: int, raw: bytes) -> None:
        self.status = status
        self.code, message = "unknown", raw[:200].decode("utf-8", "replace")
        try:
            error = json.loads(raw)["error"]
            self.code, message = str(error["code"]), str(error["message"])
        except (ValueError, KeyError, TypeError):
            pass
        super().__init__(f"status {status}, {self.code}: {message}")


class BadAnswer(Exception):
    """A replica answered with an error of its own, or with what is no JSON object."""


@dataclass(slots=True)
class _Replica:
    url: str
    rests_until: float = 0.0


class Replicas:
    """All replicas as one. One that does not answer is left alone for a moment and the next is asked."""

    def __init__(self, urls: Sequence[str], session: aiohttp.ClientSession) -> None:
        self._replicas = [_Replica(url.rstrip("/")) for url in urls]
        self._session = session

    def __len__(self) -> int:
        return len(self._replicas)

    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: bytes | None,
        until: float,
        elsewhere: Callable[[Refused], bool],
        hurried: bool = False,
    ) -> dict[str, Any]:
        """Ask each replica once until one answers, before `until` (monotonic); each is told how long it has.

        `hurried`: in less time than usual, so that running out of it says nothing against a replica.
        Refused where a replica refuses the request and `elsewhere` says that no other will take it either; Unavailable,
        with every replica's reason, where none is left.
        """
        replicas = self._in_order(time.monotonic())
        reasons = []
        for number, replica in enumerate(replicas):
            left = until - time.monotonic()
            if left <= 0:
                break
            # A replica that hangs must leave time for the next one.
            share = left if number == len(replicas) - 1 else left / 2
            told = {**headers, "X-DevMentor-Deadline-Ms": str(max(1, int(share * 1000)))}
            try:
                answer = await self._ask(method, replica.url + path, told, data, share)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, BadAnswer) as error:
                if not (hurried and isinstance(error, TimeoutError)):
                    replica.rests_until = time.monotonic() + REST_S
                reasons.append(f"{replica.url}: {type(error).__name__}: {error}"[:200])
                continue
            except Refused as error:
                if not elsewhere(error):
                    raise
                reasons.append(f"{replica.url}: {error}")
                continue
            replica.rests_until = 0.0
            return answer
        raise Unavailable(reasons)

    def _in_order(self, now: float) -> list[_Replica]:
        """Rested replicas in the configured order, then the others: better to ask one of those than none."""
        return sorted(self._replicas, key=lambda replica: max(0.0, replica.rests_until - now))

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | None, timeout_s: float
    ) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.request(method, url, headers=headers, data=data, timeout=timeout) as response:
            raw = await response.read()
            if 400 <= response.status < 500:
                raise Refused(response.status, raw)
            if response.status not in (200, 202):
                raise BadAnswer(f"status {response.status}: {raw[:200].decode('utf-8', 'replace')}")
        body = json.loads(raw)
        if not isinstance(body, dict):
            raise BadAnswer("the answer is not a JSON object")
        return body


def _may_pass(refused: Refused) -> bool:
    """Another replica, or the same one later, may take it: it is full, or its ledger is not there yet."""
    return refused.status == 429 or refused.code == "watermark_not_reached"


class Client:
    """One tenant's PBML. `newest` is the watermark of the last write that was acknowledged to this client, `durability`
    where that one is: `quorum`, `primary`, or `local`, in one replica's spool: others do not know its watermark yet."""

    def __init__(
        self, urls: Sequence[str], key: str, *, ssl_context: ssl.SSLContext | None = None, deadline_s: float = 10.0
    ) -> None:
        if not urls:
            raise ValueError("at least one URL of PBML is needed")
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._ssl = ssl_context
        self._deadline_s = deadline_s
        self.newest: str | None = None
        self.durability: str | None = None

    async def __aenter__(self) -> "Client":
        connector = aiohttp.TCPConnector(ssl=self._ssl if self._ssl is not None else True)
        self._session = aiohttp.ClientSession(connector=connector)
        self._replicas = Replicas(self._urls, self._session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ingest(
        self,
        document_id: str,
        text: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Accept a document's next version; its watermark."""
        body = {"id": document_id, "text": text, "title": title, "metadata": dict(metadata or {})}
        return await self._write("POST", "/v1/documents", body, idempotency_key)

    async def ingest_many(self, documents: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None) -> str:
        """Accept the next versions of up to 100 documents (and 16 MiB), each with `id` and `text` and perhaps `title`
        and `metadata`: all or none. The watermark of all."""
        body = {"documents": [dict(document) for document in documents]}
        return await self._write("POST", "/v1/documents:batch", body, idempotency_key)

    async def add_turn(
        self, conversation_id: str, role: str, content: str, *, idempotency_key: str | None = None
    ) -> str:
        """Accept a turn of a conversation; its watermark."""
        body = {"conversation_id": conversation_id, "role": role, "content": content}
        return await self._write("POST", "/v1/turns", body, idempotency_key)

    async def delete(self, document_id: str, *, idempotency_key: str | None = None) -> str:
        """Delete a document or a turn; the deletion's watermark."""
        return await self._write("DELETE", _document(document_id), None, idempotency_key)

    async def retry(self, document_id: str, *, idempotency_key: str | None = None) -> str:
        """Run the newest version again, which was given up."""
        return await self._write("POST", f"{_document(document_id)}/retry", None, idempotency_key)

    async def status(self, document_id: str) -> dict[str, Any]:
        """How far the newest version is."""
        return await self._call("GET", _document(document_id))

    async def context(
        self,
        query: str,
        *,
        token_budget: int,
        conversation_id: str | None = None,
        watermark: str | None = None,
        document_ids: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """What bears on a query. With a watermark it is waited for, within the deadline, until a replica has it."""
        body: dict[str, Any] = {"query": query, "token_budget": token_budget}
        if conversation_id is not None:
            body["conversation_id"] = conversation_id
        if watermark is not None:
            body["watermark"] = watermark
        if document_ids is not None:
            body["filters"] = {"document_ids": list(document_ids)}
        return await self._call("POST", "/v1/context", body)

    async def documents(self, *, prefix: str = "", status: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """All documents, page by page."""
        async for item in self._pages("/v1/documents", "documents", prefix=prefix, status=status):
            yield item

    async def turns(self, conversation_id: str) -> AsyncIterator[dict[str, Any]]:
        """All turns of a conversation, oldest first."""
        async for item in self._pages(f"/v1/conversations/{quote(conversation_id, safe='')}/turns", "turns"):
            yield item

    async def _pages(self, path: str, key: str, **query: str | None) -> AsyncIterator[dict[str, Any]]:
        given = {name: value for name, value in query.items() if value}
        while True:
            page = await self._call("GET", f"{path}?{urlencode(given)}")
            for item in page[key]:
                yield item
            if page["next_cursor"] is None:
                return
            given["cursor"] = page["next_cursor"]

    async def _write(self, method: str, path: str, body: dict[str, Any] | None, key: str | None) -> str:
        answer = await self._call(method, path, body, {"Idempotency-Key": key or uuid.uuid4().hex})
        self.newest = str(answer["watermark"])
        self.durability = str(answer["durability"])
        return self.newest

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else None
        until, pause = time.monotonic() + self._deadline_s, _PAUSE_S
        while True:
            try:
                return await self._replicas.call(
                    method, path, {**self._headers, **(headers or {})}, data, until, _may_pass
                )
            except Unavailable:
                if time.monotonic() + pause >= until:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)


def _document(document_id: str) -> str:
    return f"/v1/documents/{quote(document_id, safe='')}"
