"""Server-sent events: reading an engine's by the specification (WHATWG HTML, 9.2.6), and writing some of our own."""

import json
from dataclasses import dataclass
from typing import Any

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

_DATA = b"data: "
_ERROR = "error"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def line(payload: bytes) -> bytes:
    """JSON as an event without its empty line, in one line, because many clients read no other. Between JSON's tokens a
    line's end is a space like any; within them there is none."""
    return _DATA + payload.replace(b"\n", b" ")


def data(value: Any) -> bytes:
    """One event with a JSON value."""
    return line(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")) + b"\n\n"


def payload(event: bytes) -> bytes:
    """The data of an event that `line` wrote."""
    return event.removeprefix(_DATA)


@dataclass(frozen=True, slots=True)
class Event:
    """What an event says: its data, lines joined, and the name of its kind, "" where it has none."""

    data: bytes
    name: str = ""

    @property
    def is_error(self) -> bool:
        return self.name == _ERROR


class Parser:
    """Reads a byte stream as events. Comments, `id` and `retry` say nothing to us; an event without data is none."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_return = False  # the next line feed belongs to a carriage return that has ended a line already
        self._first = True
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are whole now."""
        if self._after_return and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_return = False
        if b"\r" in chunk:
            self._after_return = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Event | None:
        """Take a line; the event, where it ends one."""
        if self._first:
            line, self._first = line.removeprefix(_BYTE_ORDER_MARK), False
        if not line:
            ended = Event(b"\n".join(self._data), self._name) if self._data else None
            self._name, self._data = "", []
            return ended
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"data":
            self._data.append(value)
        elif field == b"error":  # older llama.cpp: an error's body in a field of its own
            self._name = _ERROR
            self._data.append(value)
        return None
