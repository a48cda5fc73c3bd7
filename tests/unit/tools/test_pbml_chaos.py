"""The chaos run's verdict: what is lost, doubled or stale is seen, and what may be is not blamed."""

from typing import Any

import pytest

from tests.chaos.pbml.attempts import ACKNOWLEDGED, History, Read, Row, Write
from tests.chaos.pbml.checker import digest, judge, longest_gap

DOCUMENT = "run-0-1"


def write(seq: int, start: float, *, known: bool = True, kind: str = "document", subject: str = DOCUMENT) -> Write:
    made = Write(kind, subject, f"zq{seq}", f"text {seq}", start, start + 1)
    if known:
        made.outcome, made.watermark = ACKNOWLEDGED, f"pg:{seq}"
    return made


def row(seq: int, version: int, *, live: bool = True, **more: Any) -> Row:
    values = {"document_id": DOCUMENT, "conversation_id": "", "kind": "document", "status": "live", **more}
    return Row(seq=seq, version=version, content_md5=digest(f"text {seq}") if live else "", live=live, **values)


def of(*writes: Write) -> History:
    return History(list(writes))


def test_what_was_kept_is_not_blamed() -> None:
    verdict = judge(of(write(1, 0), write(2, 5), write(3, 9, known=False)), [row(1, 1, live=False), row(2, 2)])
    assert (verdict.acknowledged, verdict.unknown, verdict.unknown_kept) == (2, 1, 0)
    assert (verdict.lost, verdict.doubled, verdict.problems) == (0, 0, [])
    kept = judge(of(write(1, 0), write(3, 9, known=False)), [row(1, 1, live=False), row(3, 2)])
    assert (kept.unknown_kept, kept.problems) == (1, [])


@pytest.mark.parametrize(
    ("rows", "lost", "doubled"),
    [
        ([], 2, 0),
        ([row(1, 1)], 1, 0),
        ([row(1, 1), row(2, 2, live=False)], 1, 0),
        ([row(1, 1, live=False), row(2, 2, live=False, status="failed")], 1, 0),
        ([row(1, 1, live=False), row(2, 2), row(9, 3, live=False)], 0, 1),
        ([row(1, 1), row(2, 2)], 1, 1),
    ],
)
def test_what_was_lost_or_doubled_is_seen(rows: list[Row], lost: int, doubled: int) -> None:
    verdict = judge(of(write(1, 0), write(2, 5)), rows)
    assert (verdict.lost, verdict.doubled) == (lost, doubled), verdict.problems
    assert verdict.problems


def test_a_deletion_is_kept_and_its_undoing_seen() -> None:
    history = of(write(1, 0), write(2, 5, kind="deletion"))
    gone = row(2, 2, live=False, kind="deletion")
    assert judge(history, [row(1, 1, live=False), gone]).problems == []
    assert judge(history, [row(1, 1), gone]).lost == 1


def test_of_two_writers_at_once_either_may_be_the_newest() -> None:
    history = of(write(1, 5.5), write(2, 5))
    assert judge(history, [row(1, 1), row(2, 2, live=False)]).problems == []
    assert judge(history, [row(1, 1, live=False), row(2, 2)]).problems == []


def test_turns_are_there_once_each() -> None:
    history = of(
        write(1, 0, kind="turn", subject="run-talk"), write(2, 5, kind="turn", subject="run-talk", known=False)
    )
    first = row(1, 1, document_id="t1", conversation_id="run-talk", kind="turn")
    again = row(1, 1, document_id="t2", conversation_id="run-talk", kind="turn")
    assert judge(history, [first]).problems == []
    assert judge(history, []).lost == 1
    assert judge(history, [first, again]).doubled == 1


def test_a_read_after_a_watermark_is_stale_unless_it_says_what_it_lacks() -> None:
    old, new, later = write(1, 0), write(2, 5), write(3, 20, known=False)
    history = of(old, new, later)
    rows = [row(1, 1, live=False), row(2, 2)]

    def read(*found: str, **more: Any) -> Any:
        history.reads = [Read(new, 7.0, 8.0, frozenset(found), **more)]
        verdict = judge(history, rows)
        return verdict.stale, verdict.incomplete, verdict.unanswered

    assert read("zq2") == (0, 0, 0)
    assert read("zq3", "zq1") == (0, 0, 0), "a later one may be served"
    assert read("zq1") == (1, 0, 0)
    assert read() == (1, 0, 0)
    assert read(missing=True) == (0, 1, 0)
    assert read(error="Unavailable") == (0, 0, 1)


def test_the_longest_gap_counts_from_the_fault() -> None:
    assert longest_gap([1, 4, 5, 9], 3, 10) == 4
    assert longest_gap([], 3, 10) == 7
