"""The model that writes summaries: whether it is idle, and a summary from it.

Any OpenAI-style chat endpoint: an engine by itself, or QWEN, which is told to bring no context and to keep no answer.
"""

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Sequence
from typing import Any

import aiohttp
from prometheus_client import Counter, Histogram

from devmentor.common import tasks, tls
from devmentor.pbml.settings import Settings
from devmentor.pbml.summaries.load import Load, LoadUnknown, parse_load
from devmentor.pbml.summaries.prompt import Message

CALLS = Counter("pbml_summary_calls", "Summaries asked of an engine, by how that went", ["result"])
SECONDS = Histogram(
    "pbml_summary_seconds", "Time of a summary by the engine", buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 120)
)
for _result in ("ok", "away", "failed", "yielded"):
    CALLS.labels(_result)

_LOOK_S = 2.0
_PAGE_S = 5.0
_AWAY = (429, 502, 503, 504)
_CONNECT_S = 2.0


class EngineAway(Exception):
    """No endpoint takes requests now; that says nothing about the request."""


class Refused(Exception):
    """The request was sent and no summary came of it: an error, an answer that is none, or the deadline passed."""


class Busy(Exception):
    """Somebody waits for the engine: the summary was broken off."""


class SummaryEngine:
    """One summary at a time. `open` first, inside the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._s = settings
        self._urls = [url.rstrip("/") for url in settings.summary_urls]
        self._load_urls = [url.rstrip("/") for url in settings.summary_load_urls] or self._urls
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Prepare for calls."""
        s = self._s
        ours = tls.client_context(s.tls_ca, s.tls_cert, s.tls_key) if s.tls_ca is not None else True
        key = s.summary_api_key
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {},
            connector=aiohttp.TCPConnector(ssl=ours, limit=32),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def idle(self) -> bool:
        """Whether all engines were idle at two looks, `summary_idle_s` apart. Raises LoadUnknown."""
        if not all(load.idle for load in await self._loads()):
            return False
        await asyncio.sleep(self._s.summary_idle_s)
        return all(load.idle for load in await self._loads())

    async def summarize(self, messages: Sequence[Message]) -> str:
        """The model's answer as it is. Raises EngineAway, Refused, Busy."""
        try:
            with SECONDS.time():
                said = await self._first(messages)
        except EngineAway:
            CALLS.labels("away").inc()
            raise
        except Refused:
            CALLS.labels("failed").inc()
            raise
        except Busy:
            CALLS.labels("yielded").inc()
            raise
        CALLS.labels("ok").inc()
        return said

    async def _first(self, messages: Sequence[Message]) -> str:
        """Of the first endpoint that takes requests."""
        reasons = []
        try:
            async with asyncio.timeout(self._s.summary_timeout_s):
                for url in self._urls:
                    try:
                        return await self._unless_busy(self._post(url, messages))
                    except EngineAway as error:
                        reasons.append(f"{url}: {error}")
        except TimeoutError as error:
            reasons.append(f"no answer within {self._s.summary_timeout_s:g} s")
            raise Refused("; ".join(reasons)) from error
        raise EngineAway("; ".join(reasons))

    async def _unless_busy(self, asked: Coroutine[Any, Any, str]) -> str:
        """The answer, unless a request comes to wait at an engine before: then Busy."""
        call = asyncio.create_task(asked, name="summary")
        watch = asyncio.create_task(self._until_busy(), name="summary-watch")
        try:
            await asyncio.wait({call, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise Busy("a request waits at an engine")
            return call.result()
        finally:
            await tasks.end(call, watch)

    async def _until_busy(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            # What cannot be seen is bounded by the deadline.
            with contextlib.suppress(LoadUnknown):
                if any(load.waiting > 0 for load in await self._loads()):
                    return

    async def _post(self, url: str, messages: Sequence[Message]) -> str:
        body = {
            "model": self._s.summary_model,
            "messages": list(messages),
            "max_tokens": self._s.summary_max_tokens,
            "temperature": 0,
        }
        headers = {"Cache-Control": "no-store", "X-DevMentor-Context": "none"}
        try:
            async with self._opened.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                raw = await answer.read()
                status = answer.status
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise EngineAway(f"{type(error).__name__}: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            # It had the request: a text that makes an engine fall over must not go on to the next one for ever.
            raise Refused(f"{url}: {type(error).__name__}: {error}") from error
        if status in _AWAY:
            raise EngineAway(f"status {status}")
        if status != 200:
            raise Refused(f"{url}: status {status}: {raw[:300].decode('utf-8', 'replace')}")
        try:
            said = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise Refused(f"{url}: not a chat completion: {type(error).__name__}: {error}") from error
        if not isinstance(said, str):
            raise Refused(f"{url}: the answer's content is no text")
        return said

    async def _loads(self) -> list[Load]:
        return list(await asyncio.gather(*(self._load(url) for url in self._load_urls)))

    async def _load(self, url: str) -> Load:
        try:
            async with asyncio.timeout(_PAGE_S), self._opened.get(f"{url}/metrics") as answer:
                if answer.status != 200:
                    raise LoadUnknown(f"{url}/metrics: status {answer.status}")
                return parse_load((await answer.read()).decode("utf-8", "replace"))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LoadUnknown(f"{url}/metrics: {type(error).__name__}: {error}") from error

    @property
    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("SummaryEngine.open() was not called")
        return self._session
