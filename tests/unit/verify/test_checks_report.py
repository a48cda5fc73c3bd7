"""The rows of all hosts together: what no host can tell alone, and the table."""

from __future__ import annotations

from module_utils.devmentor import checks_report
from module_utils.devmentor.checks_base import Row


def test_across_hosts() -> None:
    facts = {"h1": {"postgres_role": "primary"}, "h2": {"postgres_role": "replica"}}
    assert checks_report.across_hosts(facts, True) == [Row("postgres", "(all)", "one primary", "pass", "h1")]
    two = {**facts, "h2": {"postgres_role": "primary"}}
    assert checks_report.across_hosts(two, True)[0].result == "fail"
    assert checks_report.across_hosts({"h2": {"vip_holder": False}}, True)[0].evidence == "none"
    assert checks_report.across_hosts(two, False) == [], "a limited run cannot tell"


def test_the_table_is_aligned_and_in_the_order_of_the_tiers() -> None:
    rows = [
        Row("qdrant", "h10", "replicas", "pass", "fine " * 40),
        Row("host", "h1", "answers", "unknown", "unreachable: " + "x" * 120),
    ]
    head, first, second = checks_report.table(rows).splitlines()
    assert head.split() == ["COMPONENT", "HOST", "CHECK", "RESULT", "EVIDENCE"]
    assert first.startswith("host       h1    answers   unknown  unreachable")
    assert first.endswith("x" * 120), "what did not pass is never cut"
    assert head.index("RESULT") == first.index("unknown") == second.index("pass")
    assert len(second) < 160
