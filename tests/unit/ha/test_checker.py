"""The checker of the chaos runs: what it calls a violation, and what it only counts."""

from __future__ import annotations

import pytest

from tests.chaos.postgres.attempts import OK, TIMEOUT, WARNED, Attempt, Read, Row, parse
from tests.chaos.postgres.checker import judge, reads_back, stall, two_leaders


def attempt(client: str, seq: int, start: float, outcome: str = OK, server: str = "pg1", timeline: int = 1) -> Attempt:
    return Attempt(client, seq, start, start + 0.1, outcome, server if outcome == OK else "", timeline)


def rows(*keys: tuple[str, int]) -> list[Row]:
    return [Row(client, seq, ident) for ident, (client, seq) in enumerate(keys, 1)]


def read(start: float, position: int, client: str = "r0", outcome: str = OK) -> Read:
    return Read(client, start, start + 0.1, outcome, "w0", position, "pg2")


def test_a_round_without_a_fault_is_clean() -> None:
    attempts = [attempt("w0", 1, 0), attempt("w1", 1, 0.05), attempt("w0", 2, 1)]
    verdict = judge(attempts, rows(("w0", 1), ("w1", 1), ("w0", 2)), [read(0, 1), read(1, 1), read(2, 2)])
    assert verdict.violations == []
    assert (verdict.acknowledged, verdict.lost, verdict.unacknowledged_present, verdict.reads_back) == (3, 0, 0, 0)


def test_an_acknowledged_row_that_is_absent_is_lost() -> None:
    verdict = judge([attempt("w0", 1, 0), attempt("w0", 2, 1)], rows(("w0", 1)))
    assert verdict.lost == 1
    assert verdict.violations == ["lost: w0/2, acknowledged by pg1 on timeline 1"]


@pytest.mark.parametrize("outcome", [WARNED, TIMEOUT, "08006"])
def test_what_was_not_acknowledged_may_be_there_or_not(outcome: str) -> None:
    attempts = [attempt("w0", 1, 0), attempt("w0", 2, 1, outcome), attempt("w0", 3, 2)]
    assert judge(attempts, rows(("w0", 1), ("w0", 3))).violations == []
    there = judge(attempts, rows(("w0", 1), ("w0", 2), ("w0", 3)))
    assert there.violations == []
    assert there.unacknowledged_present == 1
    assert there.failed == {outcome: 1}
    assert there.warned == (outcome == WARNED)


def test_a_row_that_is_there_twice() -> None:
    verdict = judge([attempt("w0", 1, 0)], [Row("w0", 1, 1), Row("w0", 1, 2)])
    assert verdict.violations == ["duplicated: w0/1, 2 times"]


def test_a_row_that_nobody_sent() -> None:
    """One beyond the last attempt may have been under way when the client was killed; two beyond cannot."""
    attempts = [attempt("w0", 1, 0)]
    assert judge(attempts, rows(("w0", 1), ("w0", 2), ("w1", 1))).violations == []
    assert judge(attempts, rows(("w0", 1), ("w0", 3))).violations == ["invented: w0/3 was never sent"]


def test_acknowledged_rows_of_a_client_in_another_order() -> None:
    attempts = [attempt("w0", 1, 0), attempt("w0", 2, 1)]
    assert judge(attempts, rows(("w0", 2), ("w0", 1))).violations == ["reordered: w0/2 was written before w0/1"]


def test_late_rows_without_acknowledgement_are_not_reordered() -> None:
    attempts = [attempt("w0", 1, 0, TIMEOUT), attempt("w0", 2, 1)]
    assert judge(attempts, rows(("w0", 2), ("w0", 1))).violations == []


def test_two_servers_on_one_timeline() -> None:
    attempts = [attempt("w0", 1, 0, server="pg1", timeline=2), attempt("direct-pg2", 1, 1, server="pg2", timeline=2)]
    assert two_leaders(attempts) == ["two leaders: pg1 and pg2 both acknowledged on timeline 2"]


def test_an_old_leader_that_acknowledges_after_the_new_one() -> None:
    attempts = [
        attempt("w0", 1, 0, server="pg1", timeline=1),
        attempt("w0", 2, 5, server="pg2", timeline=2),
        attempt("direct-pg1", 9, 6, server="pg1", timeline=1),
    ]
    (found,) = two_leaders(attempts)
    assert "pg1 acknowledged direct-pg1/9 on timeline 1, sent 0.900 s after pg2 had acknowledged on timeline 2" in found


def test_an_answer_that_was_under_way_is_no_second_leader() -> None:
    """Sent before the new leader's first acknowledgement, answered long after it: the old host was frozen meanwhile."""
    late = Attempt("direct-pg1", 9, 4.0, 60.0, OK, "pg1", 1)
    assert two_leaders([attempt("w0", 2, 5, server="pg2", timeline=2), late]) == []


def test_leaders_that_follow_one_another_and_back() -> None:
    terms = [("pg1", 1, 0.0), ("pg2", 2, 5.0), ("pg1", 3, 9.0)]
    assert two_leaders([attempt("w0", n, at, server=who, timeline=tl) for n, (who, tl, at) in enumerate(terms)]) == []


def test_reads_that_go_back_are_counted_per_reader() -> None:
    reads = [read(0, 5), read(1, 3), read(2, 3), read(3, 9), read(4, 0, outcome="timeout"), read(5, 9, client="r1")]
    assert reads_back(reads) == [2]
    verdict = judge([], [], reads)
    assert (verdict.reads, verdict.reads_back, verdict.furthest_back, verdict.violations) == (6, 1, 2, [])


def test_the_stall_is_from_the_last_acknowledgement_before_the_fault_to_the_first_after() -> None:
    attempts = [
        attempt("w0", 1, 0.9),
        attempt("w1", 1, 1.4),
        attempt("w0", 2, 1.2, "08006"),
        attempt("direct-pg1", 1, 2.0),
        attempt("w1", 2, 5.4),
        attempt("w0", 3, 5.6),
    ]
    found = stall(attempts, since=1.6, until=6.0)
    assert (found.begins, found.ends) == (1.5, 5.5)
    assert found.seconds == pytest.approx(4.0)


def test_the_stall_of_clients_that_are_never_answered_again() -> None:
    found = stall([attempt("w0", 1, 0.9)], since=1.6, until=20.0)
    assert found.ends is None
    assert found.seconds == pytest.approx(19.0)


def test_a_late_gap_counts_as_well() -> None:
    """The old leader answers for a moment after the fault: that does not end the stall before it began."""
    attempts = [attempt("w0", 1, 0.9), attempt("w0", 2, 1.5), attempt("w0", 3, 7.4)]
    assert stall(attempts, since=1.2, until=8.0).seconds == pytest.approx(5.9)


def test_lines_of_clients_are_parsed() -> None:
    assert parse('["w", "w0", 1, 0.5, 0.75, "ok", "pg1", 2, ""]') == Attempt("w0", 1, 0.5, 0.75, OK, "pg1", 2)
    assert parse('["r", "r0", 0.5, 0.75, "ok", "w0", 7, "pg2", ""]') == Read("r0", 0.5, 0.75, OK, "w0", 7, "pg2")
    with pytest.raises(ValueError, match="neither"):
        parse('["x", 1]')
