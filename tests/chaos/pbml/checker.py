"""What was kept of what PBML promised: nothing acknowledged lost, nothing doubled, nothing stale. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.pbml.attempts import History, Read, Row, Write


@dataclass
class Verdict:
    """Counts, and a line for each broken promise. `acknowledged` counts versions of documents and turns, one each;
    `deletions` those that were acknowledged; `local` what of both was acknowledged into a spool."""

    acknowledged: int = 0
    deletions: int = 0
    local: int = 0
    unknown: int = 0
    unknown_kept: int = 0
    lost: int = 0
    doubled: int = 0
    reads: int = 0
    stale: int = 0
    incomplete: int = 0
    unanswered: int = 0
    problems: list[str] = field(default_factory=list)


def digest(text: str) -> str:
    """As PostgreSQL's md5(text)."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def judge(history: History, rows: Sequence[Row]) -> Verdict:
    """Compare what clients were told with the ledger's rows of the same round."""
    verdict = Verdict()
    documents: dict[str, list[Write]] = {}
    turns: list[Write] = []
    for write in history.writes:
        (turns if write.kind == "turn" else documents.setdefault(write.subject, [])).append(write)
        verdict.acknowledged += write.acknowledged and write.kind != "deletion"
        verdict.deletions += write.acknowledged and write.kind == "deletion"
        verdict.local += write.local
        verdict.unknown += not write.acknowledged
    by_document: dict[str, list[Row]] = {}
    for row in rows:
        if not row.conversation_id:
            by_document.setdefault(row.document_id, []).append(row)
    for subject, writes in documents.items():
        _document(verdict, subject, writes, by_document.pop(subject, []))
    for subject in by_document:
        verdict.doubled += 1
        verdict.problems.append(f"{subject}: in the ledger and never written")
    _turns(verdict, turns, [row for row in rows if row.conversation_id])
    _reads(verdict, history)
    return verdict


def _document(verdict: Verdict, subject: str, writes: list[Write], rows: list[Row]) -> None:
    acknowledged = [write for write in writes if write.acknowledged]
    unknown = [write for write in writes if not write.acknowledged]
    seqs = {row.seq for row in rows}
    gone = [write for write in acknowledged if write.seq is not None and write.seq not in seqs]
    for write in gone:
        _lost(verdict, write, "its ledger row is not there")
    if len(acknowledged) - len(gone) > len(rows):
        verdict.lost += len(acknowledged) - len(gone) - len(rows)
        verdict.problems.append(f"{subject}: {len(acknowledged)} versions acknowledged, {len(rows)} in the ledger")
    acknowledged = [write for write in acknowledged if write not in gone]
    if len(rows) > len(writes):
        verdict.doubled += len(rows) - len(writes)
        verdict.problems.append(f"{subject}: {len(rows)} versions in the ledger, {len(writes)} written")
    verdict.unknown_kept += max(0, len(rows) - len(acknowledged))
    texts = Counter(row.content_md5 for row in rows if row.content_md5)
    if doubled := [text for text, count in texts.items() if count > 1]:
        verdict.doubled += len(doubled)
        verdict.problems.append(f"{subject}: {len(doubled)} texts are there more than once")
    if acknowledged:
        _served(verdict, subject, acknowledged, unknown, rows)


def _served(verdict: Verdict, subject: str, acknowledged: list[Write], unknown: list[Write], rows: list[Row]) -> None:
    """What is live must be the newest that was acknowledged, or what of unknown outcome may have come after it."""
    newest = max(acknowledged, key=lambda write: (write.start, write.end))
    # One writer writes a document at a time, unless two do on purpose: then any that overlap may be the newest.
    allowed = [write for write in acknowledged if write.end >= newest.start] + [
        write for write in unknown if write.end >= newest.start or write.start >= newest.start
    ]
    live = [row for row in rows if row.live]
    deleted = any(write.kind == "deletion" for write in allowed)
    if not live:
        if not deleted:
            _lost(verdict, newest, f"nothing of it is live: {sorted((r.version, r.status) for r in rows)}")
        return
    if len(live) > 1:
        verdict.doubled += 1
        verdict.problems.append(f"{subject}: {len(live)} versions are live")
    if live[0].content_md5 not in {digest(write.text) for write in allowed if write.kind != "deletion"}:
        _lost(verdict, newest, f"version {live[0].version} is live, with another text")


def _turns(verdict: Verdict, turns: list[Write], rows: list[Row]) -> None:
    there = Counter((row.conversation_id, row.content_md5) for row in rows if row.content_md5)
    for write in turns:
        count = there.pop((write.subject, digest(write.text)), 0)
        verdict.unknown_kept += bool(count and not write.acknowledged)
        if count > 1:
            verdict.doubled += count - 1
            verdict.problems.append(f"{write.subject}: turn {write.token} is there {count} times")
        if not count and write.acknowledged:
            _lost(verdict, write, "not in the ledger")
    for subject, _ in there:
        verdict.doubled += 1
        verdict.problems.append(f"{subject}: a turn in the ledger that was never written")
    for row in rows:
        if not row.live:
            verdict.problems.append(f"{row.conversation_id}: turn {row.seq} is {row.status}")


def _lost(verdict: Verdict, write: Write, why: str) -> None:
    verdict.lost += 1
    verdict.problems.append(f"{write.kind} {write.subject} ({write.token}, {write.watermark}): {why}")


def _reads(verdict: Verdict, history: History) -> None:
    by_subject: dict[str, list[Write]] = {}
    for write in history.writes:
        by_subject.setdefault(write.subject, []).append(write)
    for read in history.reads:
        verdict.reads += 1
        if read.error:
            verdict.unanswered += 1
        elif read.found & {write.token for write in acceptable(read, by_subject[read.write.subject])}:
            continue
        elif read.missing:
            verdict.incomplete += 1  # and says so
        else:
            verdict.stale += 1
            verdict.problems.append(
                f"stale: {read.write.subject} at {read.write.watermark}: {read.write.token} was acknowledged before "
                f"the fetch, found were {sorted(read.found) or 'none'}"
            )


def acceptable(read: Read, writes: Iterable[Write]) -> list[Write]:
    """What may be served: the write itself, or one of its subject that did not end before that one began."""
    return [write for write in writes if write is read.write or (write.end or read.end) >= read.write.start]


def longest_gap(ends: Iterable[float], begin: float, until: float) -> float:
    """Seconds of the longest time between two acknowledgements from `begin` to `until`."""
    moments = [begin, *sorted(end for end in ends if begin < end < until), until]
    return max(after - before for before, after in pairwise(moments))
