"""What clients may see of each fault: everything else is a finding.

The words are those of docs/qwen.md ("When something is away"). A fault of a part that answers do not depend on allows
no error at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.qwen.seen import CONNECT, CUT, CUT_STREAM, SILENCE

BEGAN, UNDONE = "began", "undone"

NORMAL = frozenset({"engine", "cache-l1", "cache-l2", "cache-semantic"})
FALLBACK = frozenset({"cache-stale", "secondary", "engine,secondary", "degraded"})

# Errors, and why a client may see them.
NO_ENGINE = {
    "503 engine_unavailable": "no engine, nothing cached, and PBML found nothing to answer from",
    "503 engine_stream_broken": "a whole answer that was to come from an equal question's stream, which broke",
    "event engine_stream_broken": "the engine went in the middle of a stream",
}
TOO_SLOW = {
    "429 deadline_exceeded": "the client's own deadline",
    "event deadline_exceeded": "the client's own deadline, after the headers had gone out",
    "429 engine_busy": "the queue is longer than the request may wait",
    "event engine_busy": "the same, after the headers had gone out",
}
SENDER_GONE = {CUT_STREAM: "what was sending the stream is gone, and cannot say so in it any more"}
NOBODY_THERE = {
    CUT: "the gateway is gone, and with it every request that it had",
    CONNECT: "nobody has the address, or nobody listens at it, for a moment",
    SILENCE: "a host without power sends no farewell: the client's own timeout ends the request",
}


@dataclass(frozen=True)
class Expected:
    """`errors`: outcome -> why. A request that fails must have begun no later than `error_s` after the fault `since`.

    `served_by`: what may have made an answer. `must_see`: labels (seen.Seen.labels) of which one must be seen between
    the fault and its undoing, else the fault proves nothing. `degraded_context`: whether PBML's part may be missing.
    `recover_s`: seconds from the undoing until everything is as before. `most_errors`: of all requests, a share.
    """

    errors: Mapping[str, str] = field(default_factory=dict)
    error_s: float = 0.0
    since: str = UNDONE
    served_by: frozenset[str] = NORMAL
    must_see: frozenset[str] = frozenset()
    degraded_context: bool = False
    recover_s: float = 30.0
    most_errors: float = 1.0


EXPECTED: dict[str, Expected] = {
    "none": Expected(recover_s=1.0),
    # An instance whose breaker is open (30 s, then its probe, every 5 s) serves from what it has.
    "engine_killed": Expected(NO_ENGINE, error_s=45.0, since=BEGAN, served_by=NORMAL | FALLBACK, recover_s=60.0),
    "engine_frozen": Expected(
        TOO_SLOW, error_s=5.0, must_see=frozenset({*TOO_SLOW, "slow"}), recover_s=45.0
    ),
    "engine_slowed": Expected(TOO_SLOW, error_s=10.0, recover_s=45.0),
    # One in 500: an answer without the engine each, or an error where there is none.
    "engine_erring": Expected(
        NO_ENGINE, error_s=5.0, served_by=NORMAL | FALLBACK, recover_s=45.0, most_errors=0.02
    ),
    "engines_dead": Expected(
        NO_ENGINE, error_s=60.0, served_by=NORMAL | FALLBACK,
        must_see=frozenset({"cache-stale", "degraded", "503 engine_unavailable"}), recover_s=90.0,
    ),
    "valkey_one": Expected(recover_s=15.0),
    "valkey_all": Expected(recover_s=15.0),
    "qdrant_one": Expected(degraded_context=True, recover_s=60.0),
    "qdrant_all": Expected(degraded_context=True, must_see=frozenset({"context degraded"}), recover_s=120.0),
    "pbml_one": Expected(degraded_context=True, recover_s=30.0),
    "pbml_all": Expected(degraded_context=True, must_see=frozenset({"context degraded"}), recover_s=60.0),
    "postgres": Expected(degraded_context=True, recover_s=60.0),
    # The gateway asks another instance where no byte of an answer came; of a stream that began there is no second.
    "qwen_killed": Expected(SENDER_GONE, error_s=3.0, since=BEGAN, recover_s=60.0),
    "gateway_killed": Expected(
        {**SENDER_GONE, **{each: NOBODY_THERE[each] for each in (CUT, CONNECT)}},
        error_s=8.0, since=BEGAN, recover_s=15.0,
    ),
    # The host has more than the gateway on it: an engine, a PostgreSQL server that may lead, a QWEN instance.
    "gateway_host": Expected(
        {**SENDER_GONE, **NOBODY_THERE}, error_s=10.0, since=BEGAN, degraded_context=True, recover_s=120.0
    ),
}  # fmt: skip
