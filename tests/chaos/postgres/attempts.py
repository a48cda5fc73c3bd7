"""What clients did, as plain data: one line of JSON for each attempt, written by `client.py` and `direct.py`.

Times are CLOCK_MONOTONIC in seconds, which every process of the machine shares, the lab's hosts included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

OK = "ok"
WARNED = "warned"
"""Success with a WARNING: the statement was cancelled in its wait for replicas, which is no acknowledgement."""

TIMEOUT = "timeout"
"""The client's own limit on the statement ended it."""

REOPENED = "reopened"
"""The detail of a success for which a connection that was closed while it was idle had to be replaced."""

DIRECT = "direct-"
"""Prefix of the clients that sit on a server's own host and reach it by its socket, whatever the network does."""


@dataclass(frozen=True)
class Attempt:
    """One insert of row (client, seq). `outcome` is OK, WARNED, TIMEOUT, or an SQLSTATE or error class.

    An acknowledged one names the `server` that wrote it (its address, or its name for a direct client) and the
    `timeline` that it wrote on.
    """

    client: str
    seq: int
    start: float
    end: float
    outcome: str
    server: str = ""
    timeline: int = 0
    detail: str = ""

    @property
    def acknowledged(self) -> bool:
        return self.outcome == OK

    @property
    def direct(self) -> bool:
        return self.client.startswith(DIRECT)


@dataclass(frozen=True)
class Read:
    """One look of a reader at how far `writer` came: `position` is the highest seq that it saw, 0 for none."""

    client: str
    start: float
    end: float
    outcome: str
    writer: str
    position: int = 0
    server: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """A row as a server holds it; `ident` comes from a sequence, so it tells the order of writing."""

    client: str
    seq: int
    ident: int


def parse(line: str) -> Attempt | Read:
    """The reverse of what the clients print: `["w", ...]` an Attempt, `["r", ...]` a Read. Raises ValueError."""
    kind, *fields = json.loads(line)
    if kind == "w":
        return Attempt(*fields)
    if kind == "r":
        return Read(*fields)
    raise ValueError(f"{line!r} is neither an attempt nor a read")
