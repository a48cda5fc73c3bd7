"""An engine's streamed answer on its way."""

import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import aiohttp

from devmentor.qwen import metrics, sse
from devmentor.qwen.breaker import Pass
from devmentor.qwen.engine_errors import EngineError, StreamBrokenError, as_engine_error, checked, engine_message

if TYPE_CHECKING:
    from devmentor.qwen.engine import Engine

log = logging.getLogger(__name__)

_DONE = b"[DONE]"


class EngineStream:
    """A chat answer on its way. Iterating yields blocks of whole events; `payloads` collects their data.

    It is whole where [DONE] comes after a finish_reason for each choice that was begun, of at least one.
    """

    def __init__(self, engine: "Engine", response: aiohttp.ClientResponse, passed: Pass, since: float) -> None:
        self._engine = engine
        self._response = response
        self._passed = passed
        self._since = since
        self._parser = sse.Parser()
        self._first: list[sse.Event] = []
        self._ended: dict[int, bool] = {}  # choices that were begun
        self._closed = False
        self.payloads: list[bytes] = []
        self.whole = False
        self.on_close: Callable[[], None] | None = None

    async def begin(self) -> None:
        """Wait for the first event. Raises EngineError where there is none, or it is no part of an answer."""
        while not self._first:
            chunk = await self._response.content.readany()
            if not chunk:
                raise EngineError("empty_stream", "the engine ended the stream before its first event")
            self._first = self._read(chunk)
        if self._first[0].data == _DONE:
            raise EngineError("empty_stream", "the engine ended the stream before its first event")
        _checked(self._first[0])

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Events as they come, without their empty lines, [DONE] left out. Raises StreamBrokenError."""
        try:
            events = self._first
            while True:
                block = []
                broken: EngineError | None = None
                for event in events:
                    try:
                        if event.data == _DONE:
                            self._end()
                            break
                        self._note(_checked(event))
                    except EngineError as error:
                        broken = error  # after what came before it: who goes on from there counts on that
                        break
                    self.payloads.append(event.data)
                    block.append(sse.line(event.data))
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
                events = self._read(chunk)
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

    def _read(self, chunk: bytes) -> list[sse.Event]:
        """The events that are whole now. One whose data is empty says nothing, unless that something went wrong."""
        return [event for event in self._parser.feed(chunk) if event.data or event.is_error]

    def _note(self, chunk: dict[str, Any]) -> None:
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            self._ended[index] = self._ended.get(index, False) or choice.get("finish_reason") is not None

    def _end(self) -> None:
        """[DONE] came. Raises EngineError where the answer has not ended."""
        if not self._ended or not all(self._ended.values()):
            raise EngineError("unfinished", "the engine ended the stream before the answer's finish_reason")
        self.whole = True
        self._passed.success()


def _checked(event: sse.Event) -> dict[str, Any]:
    """An event's chunk of the answer. Raises EngineError where it is none."""
    if event.is_error:
        message, _ = engine_message(event.data)
        raise EngineError("reported_error", message or "the engine reported an error without a reason")
    return checked(event.data)
