"""What a run says: a line for each round, and the table of docs/pbml-chaos.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tests.chaos.pbml.faults import FAULTS
from tests.chaos.pbml.rounds import Result

Entry = dict[str, Any]
_COUNTS = (
    "acknowledged",
    "deletions",
    "local",
    "lost",
    "doubled",
    "unknown",
    "reads",
    "stale",
    "incomplete",
    "unanswered",
)
_HEADS = (
    "fault", "rounds (repeats)", "items acknowledged", "a second", "deletions", "local", "lost", "doubled",
    "outcome unknown", "reads by watermark", "stale", "incomplete, and said so", "unanswered", "longest stall, s",
    "live after, s (p95 of a round, most)", "recovered after, s (median, most)", "digests equal after, s (most)",
)  # fmt: skip


def line(result: Result) -> str:
    v = result.verdict
    recovered = f"{result.recover_s:.1f}" if result.recover_s is not None else "never"
    digests = f", digests equal after {result.digests_s} s" if result.local else ""
    notes = f", {result.notes}" if result.notes else ""
    return (
        f"{result.fault:<20} #{result.round} x{result.repeats}: {v.acknowledged} acknowledged "
        f"({_per_second(v.acknowledged, result.writing_s)}/s, {v.local} local), {v.deletions} deletions, "
        f"{v.lost} lost, {v.doubled} doubled, {v.unknown} unknown ({v.unknown_kept} kept), {v.reads} reads, "
        f"{v.stale} stale, {v.incomplete} incomplete, {v.unanswered} unanswered, stall {result.stall_s:.2f} s, "
        f"live p95 {result.live_p95_s} s, braked {result.braked_s} s, recovered after {recovered} s{digests}, "
        f"load {result.load}{notes}"
    )


def table(entries: Iterable[Entry]) -> str:
    """A line for each fault, over all of its rounds, and one for all. Items are documents' versions and turns."""
    by_fault: dict[str, list[Entry]] = {}
    for entry in entries:
        by_fault.setdefault(entry["fault"], []).append(entry)
    everything = [entry for found in by_fault.values() for entry in found]
    lines = [_row(_HEADS), _row(["---"] * len(_HEADS))]
    for name, found in [*by_fault.items(), ("all", everything)]:
        lines.append(_row(_cells(FAULTS[name].text if name in FAULTS else name, found)))
    if not everything:
        return "Not run yet."
    loads = [entry["load"] for entry in everything]
    commits = ", ".join(sorted({entry["commit"] for entry in everything}))
    noted = [f"- {e['fault']} #{e['round']}, held {e['hold_s']} s: {e['notes']}" for e in everything if e.get("notes")]
    end = f"Commit {commits}; load before the rounds {min(loads)} to {max(loads)} on two cores."
    return "\n".join([*lines, "", end, *(["", *noted] if noted else [])])


def _cells(text: str, found: Sequence[Entry]) -> list[object]:
    sums = {count: sum(entry["verdict"].get(count, 0) for entry in found) for count in _COUNTS}
    recovered = [entry["recover_s"] for entry in found if entry["recover_s"] is not None]
    never = len(found) - len(recovered)
    took = f"{statistics.median(recovered):.1f}, {max(recovered):.1f}" if recovered else ""
    written = [entry for entry in found if entry.get("writing_s")]
    rate = _per_second(
        sum(entry["verdict"]["acknowledged"] for entry in written), sum(entry["writing_s"] for entry in written)
    )
    return [
        text,
        f"{len(found)} ({sum(entry.get('repeats', 1) for entry in found)})",
        sums["acknowledged"],
        rate,
        *(sums[count] for count in _COUNTS[1:]),
        f"{max((entry['stall_s'] for entry in found), default=0):.1f}",
        _most(found, "live_p95_s"),
        took + (f"; {never} never" if never else ""),
        _most(found, "digests_s"),
    ]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _most(found: Sequence[Entry], key: str) -> str:
    known = [entry[key] for entry in found if entry.get(key) is not None]
    return f"{max(known):.1f}" if known else ""


def _per_second(count: int, seconds: float) -> str:
    return f"{count / seconds:.1f}" if seconds else ""
