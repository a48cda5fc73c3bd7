"""Judges what clients saw against what the servers hold. Pure; tests/unit/ha/test_checker.py."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.postgres.attempts import WARNED, Attempt, Read, Row


@dataclass(frozen=True)
class Verdict:
    """What was promised to clients and not kept, and what is only counted.

    `violations` has one line for each broken promise; the counts below it break none.
    """

    acknowledged: int
    lost: int
    violations: list[str]
    unacknowledged_present: int = 0
    warned: int = 0
    reads: int = 0
    reads_back: int = 0
    furthest_back: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stall:
    """The longest time without an acknowledgement; `ends` is None where none came any more."""

    begins: float
    ends: float | None
    seconds: float


def stall(attempts: Iterable[Attempt], since: float, until: float) -> Stall:
    """The longest gap between acknowledgements of the clients as a whole, direct ones left out.

    From the last acknowledgement before `since` (or `since`) to the end of observation `until`: for a fault at `since`
    that stops writes this is the RTO, the last acknowledgement before it to the first after it.
    """
    ends = sorted(a.end for a in attempts if a.acknowledged and not a.direct and a.end <= until)
    before = [end for end in ends if end <= since]
    after = [end for end in ends if end > since]
    moments = [before[-1] if before else since, *after]
    gaps = [Stall(a, b, b - a) for a, b in itertools.pairwise(moments)]
    gaps.append(Stall(moments[-1], None, until - moments[-1]))
    return max(gaps, key=lambda gap: gap.seconds)


def judge(attempts: Sequence[Attempt], rows: Sequence[Row], reads: Sequence[Read] = ()) -> Verdict:
    """Compare the attempts of a round with the rows that the cluster holds after it."""
    acknowledged = [a for a in attempts if a.acknowledged]
    present = Counter((row.client, row.seq) for row in rows)
    last_tried: dict[str, int] = defaultdict(int)
    for attempt in attempts:
        last_tried[attempt.client] = max(last_tried[attempt.client], attempt.seq)
    promised = {(a.client, a.seq) for a in acknowledged}
    lost = [a for a in acknowledged if not present[a.client, a.seq]]
    back = reads_back(reads)
    return Verdict(
        acknowledged=len(acknowledged),
        lost=len(lost),
        violations=[
            *(f"lost: {a.client}/{a.seq}, acknowledged by {a.server} on timeline {a.timeline}" for a in lost),
            *(f"duplicated: {c}/{s}, {count} times" for (c, s), count in present.items() if count > 1),
            # One more than was recorded may have been under way when a client was killed with its host.
            *(f"invented: {c}/{s} was never sent" for c, s in present if s > last_tried[c] + 1),
            *reordered(acknowledged, rows),
            *two_leaders(acknowledged),
        ],
        unacknowledged_present=sum((c, s) not in promised for c, s in present),
        warned=sum(a.outcome == WARNED for a in attempts),
        reads=len(reads),
        reads_back=len(back),
        furthest_back=max(back, default=0),
        failed=dict(Counter(a.outcome for a in attempts if not a.acknowledged and not a.direct)),
    )


def reordered(acknowledged: Iterable[Attempt], rows: Iterable[Row]) -> list[str]:
    """A client waits for each answer, so its acknowledged rows were written in the order of their numbers."""
    idents = {(row.client, row.seq): row.ident for row in rows}
    by_client: dict[str, list[int]] = defaultdict(list)
    for attempt in acknowledged:
        if (attempt.client, attempt.seq) in idents:
            by_client[attempt.client].append(attempt.seq)
    return [
        f"reordered: {client}/{later} was written before {client}/{earlier}"
        for client, seqs in by_client.items()
        for earlier, later in itertools.pairwise(sorted(seqs))
        if idents[client, earlier] >= idents[client, later]
    ]


def two_leaders(acknowledged: Iterable[Attempt]) -> list[str]:
    """Acknowledgements that show two leaders: a timeline that two servers wrote, or one that was still written after a
    later one had been acknowledged.

    A statement that began before the later timeline's first acknowledgement is no proof: its answer may have been under
    way. Servers are compared by name: the caller resolves addresses.
    """
    terms: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in acknowledged:
        terms[attempt.timeline].append(attempt)
    found = []
    for timeline, term in sorted(terms.items()):
        servers = sorted({a.server for a in term})
        if len(servers) > 1:
            found.append(f"two leaders: {' and '.join(servers)} both acknowledged on timeline {timeline}")
    for earlier, later in itertools.combinations(sorted(terms), 2):
        first = min(a.end for a in terms[later])
        if late := [a for a in terms[earlier] if a.start > first]:
            worst = max(late, key=lambda a: a.start)
            found.append(
                f"two leaders: {worst.server} acknowledged {worst.client}/{worst.seq} on timeline {earlier}, sent "
                f"{worst.start - first:.3f} s after {terms[later][0].server} had acknowledged on timeline {later} "
                f"({len(late)} such)"
            )
    return found


def reads_back(reads: Iterable[Read]) -> list[int]:
    """How far a reader's view of a writer went back between one read and its next, for each time that it did."""
    seen: dict[tuple[str, str], int] = {}
    steps = []
    for read in sorted(reads, key=lambda read: read.start):
        if read.outcome != "ok":
            continue
        key = (read.client, read.writer)
        if read.position < seen.get(key, 0):
            steps.append(seen[key] - read.position)
        seen[key] = read.position
    return steps
