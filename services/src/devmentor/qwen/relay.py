"""A stream between its engine and those who read it: the events as they come, and what they add up to.

A stream that breaks goes on from another engine where `resume` finds one: it is given the text so far as the beginning
of its answer. What follows has the first engine's id, and comments say who made it.
"""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from devmentor.common.errors import ApiError
from devmentor.qwen import completions, metrics, sse
from devmentor.qwen.answers import Served
from devmentor.qwen.engine_errors import EngineError, StreamBrokenError
from devmentor.qwen.engine_stream import EngineStream

log = logging.getLogger(__name__)

Resume = Callable[[str], Awaitable[EngineStream]]
"""Another engine's stream that goes on after a text. Raises EngineError, ApiError."""


class Relay:
    """One stream. `payload` is the whole answer once it is there; `on_whole` is told of it, resumed or not."""

    def __init__(
        self,
        stream: EngineStream,
        served: Served,
        assemble: Callable[[Iterable[bytes]], dict[str, Any]],
        on_whole: Callable[[bytes, bool], None],
        resume: Resume | None = None,
    ) -> None:
        self._stream = stream
        self._assemble = assemble
        self._on_whole = on_whole
        self._resume = resume
        self._payloads = stream.payloads
        self.served = served
        self.payload: bytes | None = None

    async def events(self) -> AsyncGenerator[list[bytes]]:
        """Blocks of events, usage included, [DONE] left out. Raises StreamBrokenError."""
        resumed = False
        try:
            async for block in self._stream.blocks():
                yield block
        except StreamBrokenError as error:
            await self._go_on(error)
            resumed = True
        if resumed:
            yield [b": served-by=secondary continues a broken stream"]
            async for block in self._stream.blocks():
                yield [self._rewritten(event) for event in block]
            yield [b": served-by=" + self.served.by.encode()]
        try:
            completion = self._assemble(self._payloads)
        except completions.BrokenStreamError as error:
            log.warning("stream not cached", extra={"reason": str(error)})
            return
        self.payload = json.dumps(completion, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._on_whole(self.payload, resumed)

    async def _go_on(self, broken: StreamBrokenError) -> None:
        """Replace the stream by one that goes on after it. Raises `broken` where there is none."""
        said = completions.said_so_far(self._payloads) if self._resume is not None else None
        if self._resume is None or said is None:
            raise broken
        await self._stream.close()
        try:
            second = await self._resume(said)
        except (EngineError, ApiError) as error:
            log.warning("stream not continued", extra={"reason": str(error)})
            metrics.CONTINUED.labels("failed").inc()
            raise broken from error
        metrics.CONTINUED.labels("continued").inc()
        self._stream, self._payloads = second, list(self._payloads)
        self.served = replace(self.served, by=f"{self.served.by},secondary")

    def _rewritten(self, event: bytes) -> bytes:
        """An event of the second stream as one of the first: its id and time, and no second beginning."""
        first: dict[str, Any] = json.loads(self._payloads[0])
        chunk = json.loads(sse.payload(event))
        chunk |= {name: first[name] for name in ("id", "created") if name in first}
        for choice in chunk.get("choices") or ():
            (choice.get("delta") or {}).pop("role", None)
        written = sse.data(chunk).removesuffix(b"\n\n")
        self._payloads.append(sse.payload(written))
        return written

    async def close(self) -> None:
        """Give the engine's slot back."""
        await self._stream.close()
