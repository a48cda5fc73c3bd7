"""A stream between its engine and those who read it: the events as they come, and what they add up to."""

import json
import logging
from collections.abc import AsyncGenerator, Callable

from devmentor.qwen import completions
from devmentor.qwen.answers import Served
from devmentor.qwen.engine_stream import EngineStream

log = logging.getLogger(__name__)


class Relay:
    """One engine's stream. `payload` is the whole answer once it is there; `on_whole` is told of it."""

    def __init__(self, stream: EngineStream, served: Served, on_whole: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._on_whole = on_whole
        self.served = served
        self.payload: bytes | None = None

    async def events(self) -> AsyncGenerator[list[bytes]]:
        """Blocks of events, usage included, [DONE] left out. Raises StreamBrokenError."""
        async for block in self._stream.blocks():
            yield block
        try:
            completion = completions.assemble(self._stream.payloads)
        except completions.BrokenStreamError as error:
            log.warning("stream not cached", extra={"reason": str(error)})
            return
        self.payload = json.dumps(completion, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._on_whole(self.payload)

    async def close(self) -> None:
        """Give the engine's slot back."""
        await self._stream.close()
