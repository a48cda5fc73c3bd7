"""Judges what clients saw of a roll that went wrong. Pure; tests/unit/chaos/test_chaos_rollout.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.bench.rolling import serving
from tests.bench.rolling.load import Result
from tests.bench.rolling.records import Record
from tests.chaos.rollout.expect import ANY, END, STRUCK, Expected

ROLLS = "rolls"
"""The mark of the roll's beginning."""


def window(expected: Expected, result: Result) -> tuple[float, float]:
    """From when to when a failure may be the fault's, in seconds of the load; empty where the fault was not done."""
    when = {label: at for at, label in result.marks} | {END: result.seconds}
    if expected.since not in when:
        return 0.0, 0.0
    return when[expected.since], when.get(expected.until, result.seconds) + expected.grace_s


def explained(expected: Expected, each: Record, begin: float, end: float) -> bool:
    """Whether a failure is what the fault allows, under way while it may be."""
    outcomes = expected.allowed.get(each.kind, frozenset())
    return (each.outcome in outcomes or ANY in outcomes) and each.ended >= begin and each.scheduled <= end


def judge(expected: Expected, result: Result) -> tuple[dict[str, Any], list[str]]:
    """(numbers, a line for each finding)."""
    begin, end = window(expected, result)
    failed = result.failed
    allowed = [each for each in failed if explained(expected, each, begin, end)]
    others = [each for each in failed if not explained(expected, each, begin, end)]
    found = [line(each, begin) for each in others]
    found += result.lost + result.problems
    found += missing(expected, result)
    numbers = {
        "requests": len(result.records),
        "failed": len(failed),
        "explained": dict(Counter(f"{each.kind}: {each.outcome}" for each in allowed)),
        "degraded": dict(Counter(f"{each.kind}: {each.degraded}" for each in result.records if each.degraded)),
        "lost": len(result.lost),
        "least_serving": {tier: serving.least(result.serving, tier) for tier in serving.TIERS},
        "serving_unknown": serving.unknown(result.serving),
    }
    return numbers, found


def line(each: Record, struck: float) -> str:
    return (
        f"{each.kind} meant for {each.scheduled - struck:+.1f} s after the fault: {each.outcome} "
        f"after {each.latency_s:.1f} s: {each.detail[:160]}"
    )


def missing(expected: Expected, result: Result) -> list[str]:
    """Whether a tier had fewer serving instances than before the roll, by more than the fault explains."""
    when = {label: at for at, label in result.marks}
    rolls = when.get(ROLLS, when.get(STRUCK, 0.0))
    before, after = _split(result.serving, rolls)
    found = []
    for tier in serving.TIERS:
        usual, least = serving.least(before, tier), serving.least(after, tier)
        if usual is None or least is None:
            found.append(f"no gateway said how many instances of {tier} it sends to")
        elif least < usual - expected.fewer:
            found.append(f"{tier} had {least} serving instances of {usual}, {expected.fewer} may be missing")
    return found


def _split(samples: Sequence[serving.Sample], at: float) -> tuple[list[serving.Sample], list[serving.Sample]]:
    return [each for each in samples if each.at < at], [each for each in samples if each.at >= at]


def ended(expected: Expected, status: int, output: str, state: str, held: Sequence[str]) -> list[str]:
    """Whether the struck roll ended as it should: its status, its words, the journal's state, nobody with a lock."""
    said = " ".join(output.split())
    found = []
    if bool(status) != expected.stops:
        found.append(f"the roll ended with {status}; it was to {'stop' if expected.stops else 'go through'}")
    found += [f"the roll does not say {word!r}" for word in expected.says if word not in said]
    if state != expected.journal:
        found.append(f"the journal is {state or 'empty'} after the roll, not {expected.journal}")
    if held:
        found.append(f"{', '.join(held)} still have the lock after the roll")
    return found
