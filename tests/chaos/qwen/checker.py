"""Judges what clients saw of a fault by what they may see of it. Pure; tests/unit/chaos/test_chaos_qwen_checker.py."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.qwen.expect import BEGAN, FALLBACK, NORMAL, Expected
from tests.chaos.qwen.seen import OK, SILENCE, Seen

CALM_S = 10.0
"""Recovered is what goes on for so long without an error."""

NOISE = 0.05
"""Share of answers whose context may be degraded at any time: PBML has two seconds, and a busy machine misses them."""

CACHES = frozenset({"hit", "miss", "bypass", "stale", "shared"})
CONTEXTS = frozenset({"ok", "none", "degraded"})


@dataclass(frozen=True)
class Moments:
    """Of a round, in seconds of the monotonic clock: the fault, its undoing, and the last request's beginning."""

    began: float
    undone: float
    until: float


@dataclass
class Verdict:
    """`violations` has a line for each finding. `worst_gap_s`: the longest time without a right answer's end.

    `recovery_s`: from the undoing until `CALM_S` seconds without an error or a fallback begin; None: never seen.
    """

    requests: int
    ok: int
    served_by: dict[str, int]
    errors: dict[str, int]
    degraded_context: int
    worst_gap_s: float
    recovery_s: float | None
    slowest_s: float
    violations: list[str] = field(default_factory=list)


def judge(expected: Expected, seen: Sequence[Seen], moments: Moments) -> Verdict:
    """What a round showed."""
    right = [each for each in seen if each.ok]
    errors = Counter(each.outcome for each in seen if not each.ok)
    recovery = recovered(seen, moments)
    verdict = Verdict(
        requests=len(seen),
        ok=len(right),
        served_by=dict(Counter(each.served_by or "?" for each in right)),
        errors=dict(errors),
        degraded_context=sum(each.context == "degraded" for each in right),
        worst_gap_s=round(worst_gap(right, moments), 2),
        recovery_s=None if recovery is None else round(recovery, 1),
        slowest_s=round(max((each.total_s for each in seen), default=0.0), 2),
    )
    verdict.violations = [
        *unexplained(expected, seen, moments),
        *unnamed(expected, right),
        *overdue(expected, seen),
        *unadvised(seen),
        *_of_the_whole(expected, seen, moments, verdict),
    ]
    return verdict


def line(each: Seen, moments: Moments) -> str:
    at = each.start - moments.began
    return f"request {each.number} ({each.kind}) at {at:+.1f} s: {each.outcome}"


def unexplained(expected: Expected, seen: Sequence[Seen], moments: Moments) -> list[str]:
    """Errors that the table does not have, or not at that time."""
    found = []
    last = (moments.began if expected.since == BEGAN else moments.undone) + expected.error_s
    for each in seen:
        if each.ok:
            continue
        if each.outcome not in expected.errors:
            found.append(f"unexplained: {line(each, moments)}: {each.detail[:160]}")
        elif each.end < moments.began:
            found.append(f"before the fault: {line(each, moments)}")
        elif each.start > last:
            found.append(f"too late: {line(each, moments)}, {each.start - last:.1f} s after the last that may fail")
    return found


def unnamed(expected: Expected, right: Sequence[Seen]) -> list[str]:
    """Answers that do not say what served them, or were served by what the table does not have."""
    found = []
    for each in right:
        where = f"request {each.number} ({each.kind})"
        if each.served_by not in expected.served_by:
            what = each.served_by or "nothing said"
            word = "served by" if each.served_by in NORMAL | FALLBACK else "does not say what served it:"
            found.append(f"{where} {word} {what}")
        if each.cache not in CACHES or each.context not in CONTEXTS or not each.instance:
            found.append(
                f"{where} has cache {each.cache!r}, context {each.context!r}, instance {each.instance!r} in its headers"
            )
    return found


def overdue(expected: Expected, seen: Sequence[Seen]) -> list[str]:
    """Requests that took longer than they may. The client's own read timeout counts only where it is allowed."""
    return [
        f"hung: request {each.number} ({each.kind}) took {each.total_s:.1f} s of {each.limit_s:.1f}: {each.outcome}"
        for each in seen
        if each.total_s > each.limit_s and not (each.outcome == SILENCE and SILENCE in expected.errors)
    ]


def unadvised(seen: Sequence[Seen]) -> list[str]:
    """Refusals that do not say when to come back."""
    return [
        f"no Retry-After: request {each.number}: {each.outcome}"
        for each in seen
        if each.status == 429 and not each.retry_after
    ]


def recovered(seen: Sequence[Seen], moments: Moments) -> float | None:
    """Seconds from the undoing until nothing is amiss for `CALM_S` seconds; 0 where nothing was. None: not seen."""
    starts = [moments.undone, *sorted(each.start for each in seen if each.start > moments.undone and _amiss(each))]
    for begin, end in itertools.pairwise([*starts, moments.until]):
        calm = [each for each in seen if begin < each.start <= end and not _amiss(each)]
        if end - begin >= CALM_S and calm:
            return begin - moments.undone
    return None


def _amiss(each: Seen) -> bool:
    return not each.ok or each.served_by not in NORMAL


def worst_gap(right: Sequence[Seen], moments: Moments) -> float:
    """The longest time between the ends of right answers, from the fault on."""
    ends = sorted(each.end for each in right if each.end <= moments.until)
    before = [end for end in ends if end <= moments.began]
    points = [before[-1] if before else moments.began, *(e for e in ends if e > moments.began), moments.until]
    return max(b - a for a, b in itertools.pairwise(points))


def _of_the_whole(expected: Expected, seen: Sequence[Seen], moments: Moments, verdict: Verdict) -> list[str]:
    found = []
    if not any(each.ok and each.end < moments.began for each in seen):
        found.append("nothing was answered before the fault: there is nothing to compare with")
    during = [each for each in seen if each.end > moments.began and each.start < moments.undone]
    if expected.must_see and not any(each.labels() & expected.must_see for each in during):
        found.append(f"the fault was not noticed: none of {', '.join(sorted(expected.must_see))} was seen")
    if verdict.recovery_s is None or verdict.recovery_s > expected.recover_s:
        took = "not seen" if verdict.recovery_s is None else f"after {verdict.recovery_s:.1f} s"
        found.append(f"recovered {took}, {expected.recover_s:.0f} s are allowed")
    if not expected.degraded_context and verdict.degraded_context > NOISE * max(verdict.ok, 1):
        found.append(f"{verdict.degraded_context} of {verdict.ok} answers without PBML's context")
    failed = verdict.requests - verdict.ok
    if failed > expected.most_errors * max(verdict.requests, 1):
        found.append(f"{failed} of {verdict.requests} requests failed, {expected.most_errors:.1%} are allowed")
    return found


def timeline(seen: Sequence[Seen], began: float) -> list[dict[str, Any]]:
    """By second of the requests' beginnings, relative to the fault: what came of them."""
    seconds: dict[int, list[Seen]] = {}
    for each in seen:
        seconds.setdefault(int((each.start - began) // 1), []).append(each)
    return [
        {
            "second": second,
            "requests": len(found),
            "ok": sum(each.ok for each in found),
            "served_by": dict(Counter(each.served_by for each in found if each.ok)),
            "errors": dict(Counter(each.outcome for each in found if each.outcome != OK)),
            "slowest_s": round(max(each.total_s for each in found), 3),
        }
        for second, found in sorted(seconds.items())
    ]
