"""What clients saw, as plain data: one `Seen` for each request. Times are CLOCK_MONOTONIC in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

OK = "ok"
"""A whole answer, or a stream up to its [DONE]."""

CONNECT = "connect"
"""No connection came about, TLS included."""

CUT = "cut"
"""The connection broke before an answer began, or in a whole one, and the HTTP client said so."""

CUT_STREAM = "cut stream"
"""The same in the middle of a stream."""

SILENCE = "silence"
"""No byte for the client's own read timeout: longer than two of a stream's pings."""

UNFINISHED = "unfinished"
"""A stream that ended, as if it were whole, without [DONE], a finish_reason, or an error event."""

UNREADABLE = "unreadable"
"""Status 200 with a body that is no completion."""

HUNG = "hung"
"""Not over long after its limit; the client gave it up."""

STREAM, WHOLE = "stream", "whole"
INGEST, FETCH = "ingest", "fetch"


@dataclass(frozen=True)
class Seen:
    """One request.

    `outcome` is one of the words above, "STATUS CODE" (503 engine_unavailable), or "event CODE" for an error event in a
    stream. `limit_s` is how long it may take at most. `served_by`, `cache` and `context` are the headers', or what
    a late stream's comment says in their place; of an ingest `served_by` is its durability. `silence_s` is the longest
    time without a byte.
    """

    number: int
    kind: str
    start: float
    total_s: float
    limit_s: float
    outcome: str
    status: int = 0
    served_by: str = ""
    cache: str = ""
    context: str = ""
    instance: str = ""
    first_byte_s: float | None = None
    silence_s: float = 0.0
    retry_after: bool = False
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == OK

    @property
    def end(self) -> float:
        return self.start + self.total_s

    def labels(self) -> set[str]:
        """By what a fault can be noticed here: the outcome, who served it, a degraded context, slowness."""
        found = {self.outcome, self.served_by, f"context {self.context}"}
        return found | ({"slow"} if self.total_s > 5 else set())


def write(path: Path, seen: Iterable[Seen]) -> None:
    """One line of JSON for each request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in seen))


def read(path: Path) -> list[Seen]:
    return [Seen(**json.loads(line)) for line in path.read_text().splitlines()]
