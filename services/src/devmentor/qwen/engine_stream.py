"""An engine's streamed answer on its way."""

import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import aiohttp

from devmentor.qwen import metrics, sse
from devmentor.qwen.breaker import Pass
from devmentor.qwen.engine_errors import EngineError, StreamBrokenError, as_engine_error, engine_message

if TYPE_CHECKING:
    from devmentor.qwen.engine import Engine

log = logging.getLogger(__name__)


class EngineStream:
    """A chat answer on its way. Iterating yields blocks of whole events; `payloads` collects their data."""

    def __init__(self, engine: "Engine", response: aiohttp.ClientResponse, passed: Pass, since: float) -> None:
        self._engine = engine
        self._response = response
        self._passed = passed
        self._since = since
        self._splitter = sse.Splitter()
        self._first: list[bytes] = []
        self._closed = False
        self.payloads: list[bytes] = []
        self.whole = False
        self.on_close: Callable[[], None] | None = None

    async def begin(self) -> None:
        """Wait for the first event. Raises EngineError where the engine reports an error instead."""
        while not self._first:
            chunk = await self._response.content.readany()
            if not chunk:
                raise EngineError("empty_stream", "the engine ended the stream before its first event")
            self._first = [event for event in self._splitter.feed(chunk) if not event.startswith(b":")]
        self._refuse_error(self._first[0])

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Events as they come, without their empty lines, [DONE] left out. Raises StreamBrokenError."""
        try:
            events = self._first
            while True:
                block = []
                broken: EngineError | None = None
                for event in events:
                    data = sse.payload(event)
                    if data == b"[DONE]":
                        self.whole = True
                        self._passed.success()
                        break
                    if data:
                        try:
                            self._refuse_error(event)
                        except EngineError as error:
                            broken = error  # after what came before it: who goes on from there counts on that
                            break
                        self.payloads.append(data)
                        block.append(event)
                if block:
                    self._engine.moved()
                    yield block
                if broken is not None:
                    raise broken
                if self.whole:
                    return
                chunk = await self._response.content.readany()
                if not chunk:
                    raise StreamBrokenError("broken_stream", "the engine closed the connection in the answer")
                events = self._splitter.feed(chunk)
        except (EngineError, aiohttp.ClientError, OSError, TimeoutError) as error:
            self._passed.error()
            wrapped = as_engine_error(error)
            metrics.ENGINE_ERRORS.labels(self._engine.model, wrapped.kind).inc()
            log.warning("stream broke", extra={"model": self._engine.model, "reason": str(wrapped)})
            raise StreamBrokenError(wrapped.kind, str(wrapped)) from error

    async def close(self) -> None:
        """Give the slot back. An answer that is not whole is cancelled: closing the connection stops the engine."""
        if self._closed:
            return
        self._closed = True
        if self.whole:
            self._response.release()
        else:
            self._response.close()
        self._engine.pool.release(self._since)
        if self.on_close is not None:
            self.on_close()

    @staticmethod
    def _refuse_error(event: bytes) -> None:
        if event.startswith((b"error:", b'data: {"error"', b'data:{"error"')):
            message, _ = engine_message(sse.payload(event))
            raise EngineError("stream_error", message or "the engine reported an error in the stream")
