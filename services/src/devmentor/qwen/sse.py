"""Server-sent events as OpenAI streams use them: cutting a byte stream into events, and writing some of our own."""

import json
from typing import Any

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


def data(value: Any) -> bytes:
    """One event with a JSON value."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


def payload(event: bytes) -> bytes:
    """The data of an event, b"" where it has none (a comment). A field other than `data` marks an engine's error."""
    lines = []
    for line in event.split(b"\n"):
        if line.startswith((b"data:", b"error:")):
            lines.append(line.split(b":", 1)[1].removeprefix(b" "))
    return b"\n".join(lines)


class Splitter:
    """Cuts what arrives into whole events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now, each without its empty line."""
        self._rest += chunk
        if b"\r" in self._rest:
            # A carriage return at the very end may be half of a line end.
            tail = b"\r" if self._rest.endswith(b"\r") else b""
            self._rest = self._rest.removesuffix(b"\r").replace(b"\r\n", b"\n") + tail
        if b"\n\n" not in self._rest:
            return []
        *events, self._rest = self._rest.split(b"\n\n")
        return [event for event in events if event]
