"""What a constant load saw: one `Record` for each request or statement, and what they say together. Pure.

Times are seconds since the load began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.qwen.load import percentile
from tests.chaos.qwen.expect import FALLBACK
from tests.chaos.qwen.seen import FETCH, INGEST, OK, Seen

CHAT, STREAM, SQL_WRITE, SQL_READ = "chat", "stream", "sql write", "sql read"
KINDS = (CHAT, STREAM, INGEST, FETCH, SQL_WRITE, SQL_READ)
SLOW_FACTOR = 3.0
"""A request is slow that took more than so many times the p95 of its kind before."""

SLOW_FLOOR_S = 0.25
"""And more than this: three times of next to nothing is no matter of a client's."""


@dataclass(frozen=True, slots=True)
class Record:
    """`outcome` is "ok" or what went wrong (tests/chaos/qwen/seen.py; of SQL an SQLSTATE, an error's class, timeout).

    `degraded` says in what way a right answer is less than a whole one; empty where it is not. `where` is the QWEN
    instance, or the PostgreSQL server.
    """

    kind: str
    scheduled: float
    started: float
    ended: float
    outcome: str
    status: int = 0
    served_by: str = ""
    cache: str = ""
    context: str = ""
    where: str = ""
    degraded: str = ""
    detail: str = ""

    @property
    def failed(self) -> bool:
        """No whole, right answer: not 2xx, cut, truncated, timed out, unreadable."""
        return self.outcome != OK

    @property
    def latency_s(self) -> float:
        """From the moment that the schedule meant it for."""
        return self.ended - self.scheduled


def less_than_whole(kind: str, seen: Seen) -> str:
    """In what way a right answer is less than a client wanted; empty where it is not."""
    if not seen.ok:
        return ""
    if seen.context == "degraded":
        return "context"
    if kind == INGEST:
        return "" if seen.served_by == "quorum" else f"durability {seen.served_by}"
    return seen.served_by if seen.served_by in FALLBACK else ""


def of_http(kind: str, intended: float, began: float, seen: Seen) -> Record:
    """`intended` and `began`, the load's beginning, are of the monotonic clock."""
    return Record(
        kind, round(intended - began, 4), round(seen.start - began, 4), round(seen.end - began, 4), seen.outcome,
        seen.status, seen.served_by, seen.cache, seen.context, seen.instance, less_than_whole(kind, seen), seen.detail,
    )  # fmt: skip


def within(records: Iterable[Record], begin: float, end: float) -> list[Record]:
    """Those that were meant for a time from `begin` up to `end`."""
    return [each for each in records if begin <= each.scheduled < end]


def slow_limit(baseline: Iterable[Record], kind: str) -> float:
    """Seconds from which on a request of a kind is slow; infinite without a baseline."""
    p95 = percentile([each.latency_s for each in baseline if each.kind == kind and not each.failed], 0.95)
    return max(SLOW_FLOOR_S, SLOW_FACTOR * p95)


def summary(records: Sequence[Record], seconds: float, baseline: Sequence[Record] = ()) -> dict[str, dict[str, Any]]:
    """Kind -> its numbers over so many seconds. `p95_ratio` and `slow` are against a baseline; None without one."""
    return {kind: _of_kind(kind, records, seconds, baseline) for kind in KINDS if any(r.kind == kind for r in records)}


def _of_kind(kind: str, records: Sequence[Record], seconds: float, baseline: Sequence[Record]) -> dict[str, Any]:
    found = [each for each in records if each.kind == kind]
    times = [each.latency_s for each in found if not each.failed]
    before = [each.latency_s for each in baseline if each.kind == kind and not each.failed]
    limit = slow_limit(baseline, kind) if before else None
    failed = [each for each in found if each.failed]
    return {
        "requests": len(found),
        "failed": len(failed),
        "failed_per_s": round(len(failed) / seconds, 4) if seconds else 0.0,
        "failures": dict(Counter(each.outcome for each in failed)),
        "degraded": dict(Counter(each.degraded for each in found if each.degraded)),
        "slow": sum(time > limit for time in times) if limit is not None else None,
        "p50_s": _rounded(percentile(times, 0.5)),
        "p95_s": _rounded(percentile(times, 0.95)),
        "p99_s": _rounded(percentile(times, 0.99)),
        "most_s": _rounded(max(times, default=0.0)),
        "p95_ratio": _rounded(percentile(times, 0.95) / percentile(before, 0.95)) if before and times else None,
    }


def _rounded(value: float) -> float | None:
    """None for what there is not: JSON has no infinity."""
    return round(value, 4) if value != float("inf") else None


def failures(records: Iterable[Record]) -> list[str]:
    """A line for each request that failed."""
    return [
        f"at {each.scheduled:.1f} s {each.kind}: {each.outcome} after {each.latency_s:.2f} s: {each.detail[:120]}"
        for each in records
        if each.failed
    ]
