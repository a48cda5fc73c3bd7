"""Client of PBML: context for a question, its version, turns written back. Any replica takes any call.

Calls go to one replica for as long as it answers; one that does not is left alone for a moment and the next is asked
within the same deadline. When none answers, PbmlUnavailableError says so and QWEN goes on without.
"""

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from devmentor.common import context
from devmentor.common.auth import TokenBudget
from devmentor.pbml import client
from devmentor.qwen import metrics

log = logging.getLogger(__name__)

_LAST_KNOWN_S = 300.0
_MEMO_MAX = 10_000


class PbmlUnavailableError(Exception):
    """No replica gave an answer within the deadline."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, best first in a list of them."""

    text: str
    provenance: dict[str, Any]

    @property
    def is_summary(self) -> bool:
        """Whether a model wrote it, of earlier turns of the conversation."""
        return self.provenance.get("source") == "summary"


@dataclass(frozen=True, slots=True)
class Found:
    """What PBML has for a question. `degraded`: it answered without one of its own stores."""

    chunks: list[Chunk]
    turns: list[dict[str, str]]
    version: str
    degraded: bool


@dataclass(frozen=True, slots=True)
class Version:
    """A context version; `current` is False where PBML is away and this is the last that was known."""

    text: str | None
    current: bool


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request a call belongs to; PBML checks the same key itself."""

    tenant: str
    authorization: str
    budget: TokenBudget | None = None

    @property
    def payer(self) -> bytes | None:
        """Whose budget an answer is charged to; None where it is nobody's."""
        return self.budget.key_sha256 if self.budget is not None else None


@dataclass(slots=True)
class _Memo:
    version: str
    at: float


class Pbml:
    """All replicas as one."""

    def __init__(
        self, urls: Sequence[str], session: aiohttp.ClientSession, *, deadline_s: float, version_s: float
    ) -> None:
        self._replicas = client.Replicas(urls, session)
        self._deadline_s = deadline_s
        self._version_s = version_s
        self._versions: dict[tuple[str, str | None], _Memo] = {}
        self._asking: dict[tuple[str, str | None], asyncio.Task[str]] = {}

    @property
    def configured(self) -> bool:
        return len(self._replicas) > 0

    async def version(self, caller: Caller, conversation: str | None) -> Version:
        """The version of what a question may find now. It changes when a document or a turn becomes visible.

        Believed for a moment per tenant and conversation. Concurrent askers share one call.
        """
        key = caller.tenant, conversation
        memo, now = self._versions.get(key), time.monotonic()
        if memo is not None and now - memo.at < self._version_s:
            return Version(memo.version, current=True)
        try:
            return Version(await self._shared_version(key, caller), current=True)
        except PbmlUnavailableError:
            if memo is not None and now - memo.at < _LAST_KNOWN_S:
                return Version(memo.version, current=False)
            return Version(None, current=False)

    async def _shared_version(self, key: tuple[str, str | None], caller: Caller) -> str:
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask_version(key, caller))
            task.add_done_callback(lambda done: self._answered(key, done))
        # One asker's disconnect must not cancel the call that others wait for.
        return await asyncio.shield(task)

    def _answered(self, key: tuple[str, str | None], task: "asyncio.Task[str]") -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # the askers see it; none may be left by now

    async def _ask_version(self, key: tuple[str, str | None], caller: Caller) -> str:
        asked = time.monotonic()
        query = f"?conversation_id={quote(key[1], safe='')}" if key[1] is not None else ""
        body = await self._call("version", "GET", f"/v1/context/version{query}", caller)
        try:
            version = str(body["context_version"])
        except KeyError:
            raise PbmlUnavailableError("the answer has no context_version") from None
        if len(self._versions) >= _MEMO_MAX:
            self._versions.clear()
        self._versions[key] = _Memo(version, asked)
        return version

    async def context(
        self,
        caller: Caller,
        query: str,
        *,
        conversation: str | None,
        watermark: str | None,
        token_budget: int,
        limit_s: float | None = None,
    ) -> Found:
        """Chunks and turns for a question, at most about `token_budget` tokens by PBML's own count.

        `limit_s`: seconds that this call gets where that is less than usual; PBML is told.
        """
        request: dict[str, Any] = {"query": query, "token_budget": token_budget}
        if conversation is not None:
            request["conversation_id"] = conversation
        if watermark is not None:
            request["watermark"] = watermark
        body = await self._call("context", "POST", "/v1/context", caller, request, limit_s=limit_s)
        try:
            return Found(
                chunks=[
                    Chunk(str(chunk["text"]), {name: value for name, value in chunk.items() if name != "text"})
                    for chunk in body["chunks"]
                ],
                turns=[{"role": str(turn["role"]), "content": str(turn["content"])} for turn in body["turns"]],
                version=str(body["context_version"]),
                degraded=bool(body["degraded"]),
            )
        except (KeyError, TypeError) as error:
            raise PbmlUnavailableError(f"the answer lacks {error}") from error

    async def add_turn(self, caller: Caller, conversation: str, role: str, content: str, idempotency: str) -> None:
        """Write one turn of a conversation."""
        turn = {"conversation_id": conversation, "role": role, "content": content}
        await self._call("turn", "POST", "/v1/turns", caller, turn, idempotency=idempotency)
        self._versions.pop((caller.tenant, conversation), None)

    async def _call(
        self,
        operation: str,
        method: str,
        path: str,
        caller: Caller,
        body: dict[str, Any] | None = None,
        *,
        idempotency: str | None = None,
        limit_s: float | None = None,
    ) -> dict[str, Any]:
        headers = {"Authorization": caller.authorization, "X-Request-Id": context.request_id.get() or ""}
        if idempotency is not None:
            headers["Idempotency-Key"] = idempotency
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode("utf-8", "replace")
        start = time.monotonic()
        deadline_s = self._deadline_s if limit_s is None else min(limit_s, self._deadline_s)
        try:
            # What one replica refuses another one may take: it has not reached a watermark yet, say.
            answer = await self._replicas.call(
                method,
                path,
                headers,
                data,
                start + deadline_s,
                elsewhere=lambda _refused: True,
                hurried=limit_s is not None,
            )
        except client.Unavailable as error:
            log.warning("PBML does not answer", extra={"operation": operation, "reasons": error.reasons})
            raise PbmlUnavailableError(str(error)) from error
        metrics.CONTEXT_SECONDS.labels(operation).observe(time.monotonic() - start)
        return answer
