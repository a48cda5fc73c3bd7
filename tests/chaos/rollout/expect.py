"""What each fault of a roll may cost, and how the roll has to end: everything else is a finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.bench.rolling.records import CHAT, SQL_READ, SQL_WRITE, STREAM
from tests.chaos.qwen.seen import CONNECT, CUT, CUT_STREAM, FETCH, INGEST, SILENCE

RESUME, NOTHING = "rolling_update", ""
ANY = "any"
STRUCK, STOPPED, UNDONE, END = "struck", "stopped", "undone", "end"
"""Marks of a round: the fault, the end of the roll that it struck, its undoing, the end of the load."""

THE_RELEASE = {CHAT: frozenset({"500 chaos_pretended"}), STREAM: frozenset({"500 chaos_pretended"})}
NO_STORE = ("503 unavailable", "503 database_unavailable", "503 outcome_unknown")
# The host has a PgBouncer, a PostgreSQL server that may lead, a PBML; its QWEN was drained, so chats are not cut.
THE_HOST = {
    SQL_WRITE: frozenset({ANY}), SQL_READ: frozenset({ANY}),
    INGEST: frozenset({CUT, CONNECT, SILENCE, *NO_STORE, "502 bad_gateway", "504 timeout"}),
    FETCH: frozenset({CUT, CONNECT, SILENCE, *NO_STORE, "502 bad_gateway", "504 timeout"}),
    STREAM: frozenset({CUT_STREAM}),
}  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """`stops`: whether the roll that is struck has to fail; `says`: what its output must have then. `finish`: what ends
    it after the fault was undone; then the journal is finished. `journal`: the state after the struck roll.

    `allowed`: kind of request -> outcomes that the fault explains, for what was meant for a time from the mark `since`
    to `until` and `grace_s` seconds more. `fewer`: instances of QWEN or PBML that may be missing at a gateway.
    """

    stops: bool = True
    says: tuple[str, ...] = ()
    finish: str = RESUME
    journal: str = "failed"
    allowed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    since: str = STRUCK
    until: str = STOPPED
    grace_s: float = 0.0
    fewer: int = 0


GONE_BACK = Expected(says=("The roll stopped at qwen on",), finish=NOTHING, journal="rolled_back")

EXPECTED: dict[str, Expected] = {
    "none": Expected(stops=False, finish=NOTHING, journal="finished"),
    # The canary alone has the release. It goes back by itself, and with that the roll is closed: nothing is left to do.
    "never_ready": GONE_BACK,
    "erring": replace(GONE_BACK, allowed=THE_RELEASE, grace_s=5.0),
    "slow": GONE_BACK,
    "host_lost": Expected(says=("is lost",), allowed=THE_HOST, until=STRUCK, grace_s=30.0, fewer=1),
    "control_killed": Expected(stops=False, finish=NOTHING, journal="finished"),
    # What cannot be judged has not passed. The canary goes back here too, and the next roll finds nothing in its way.
    "prometheus_away": replace(GONE_BACK, finish=RESUME),
    "second_roll": Expected(stops=False, finish=NOTHING, journal="finished"),
    # Not the canary: the hosts before it keep the release, and the roll that goes on finishes it.
    "disk_full": Expected(says=("The roll stopped at qwen on",)),
}
