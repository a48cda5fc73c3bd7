from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from module_utils.devmentor.run_report import Answer, RunRecord
from module_utils.devmentor.run_report_files import prune, write
from module_utils.devmentor.run_report_html import page
from module_utils.devmentor.run_report_table import duration, phase_line, slowest, step_line, table


@pytest.fixture
def record() -> RunRecord:
    """Every look at its clock takes a second."""
    ticks = count()
    record = RunRecord("site.yml", {}, clock=lambda: float(next(ticks)))
    record.begin_phase("(1/2) First")
    return record


def journal(record: RunRecord, phase: str, host: str = "q1", keeper: str = "k1", **more: str) -> Any:
    record.begin_task(f"{phase}{host}{keeper}", "Journal")
    entry = {"kind": "journal", "tier": "qwen", "host": host, "phase": phase, **more}
    return record.answer(Answer(keeper, f"{phase}{host}{keeper}", "ok", result={"report": entry}))


def test_a_turn_is_told_once_though_three_keepers_write_it(record: RunRecord) -> None:
    ended = []
    for phase in ("began", "drained", "done"):
        ended += [journal(record, phase, keeper=keeper, before="r1") for keeper in ("k1", "k2", "k3")]
    [step] = [step for step in ended if step]
    assert step_line(step).split() == ["step", "qwen", "on", "q1", "done", *duration(step.seconds()).split()]
    [told] = record.document("finished")["steps"]
    assert (told["before"], told["result"], [p["phase"] for p in told["phases"]]) == (
        "r1", "done", ["began", "drained", "done"],
    )  # fmt: skip


def test_a_turn_that_failed_and_went_back_and_one_that_did_not_end(record: RunRecord) -> None:
    for phase in ("began", "failed", "went_back"):
        journal(record, phase)
    journal(record, "began", host="q2")
    journal(record, "began")
    told = [(step["host"], step["result"]) for step in record.document("failed")["steps"]]
    assert told == [("q1", "failed, went back"), ("q2", "not finished"), ("q1", "not finished")]


def test_versions_before_and_after(record: RunRecord) -> None:
    def seen(versions: dict[str, str]) -> None:
        facts = {"ansible_local": {"devmentor": {"versions": versions}}}
        record.answer(Answer("q1", "t", "ok", "setup", {"ansible_facts": facts}))

    seen({"haproxy": "3.0.11", "qwen": "r1"})
    record.answer(
        Answer(
            "q1", "u", "ok", result={"report": {"kind": "version", "component": "qwen", "before": "r1", "after": "r2"}}
        )
    )
    record.answer(Answer("q1", "u", "ok", result={"report": {"kind": "version", "component": "new", "after": "1"}}))
    seen({"haproxy": "3.0.12", "qwen": "r2"})
    told = {row["component"]: (row["before"], row["after"]) for row in record.document("finished")["versions"]}
    assert told == {"haproxy": ("3.0.11", "3.0.12"), "qwen": ("r1", "r2"), "new": ("", "1")}


def test_a_host_counts_once_in_a_phase_by_the_worst_that_became_of_it(record: RunRecord) -> None:
    for host, outcomes in {
        "a": ["ok"],
        "b": ["ok", "changed"],
        "c": ["changed", "failed"],
        "d": ["ok", "unreachable"],
    }.items():
        for outcome in outcomes:
            changed = {"changed": outcome == "changed"}
            record.answer(Answer(host, "t", "ok" if outcome == "changed" else outcome, result=changed))
    phase = record.phases[0]
    assert phase.tally() == {"ok": 1, "changed": 1, "failed": 1, "unreachable": 1}
    record.end_phase()
    assert "ok 1  changed 1  failed 1  unreachable 1" in phase_line(phase)
    assert record.failed()


def test_the_table_is_narrow_and_leaves_out_phases_without_hosts(record: RunRecord) -> None:
    record.answer(Answer("a", "t", "ok"))
    record.begin_phase("(2/2) " + "long " * 30)
    record.answer(Answer("a", "t2", "ok"))
    record.begin_phase("nobody")
    record.end_phase()
    lines = table(record)
    assert [line.split()[0] for line in lines] == ["phase", "(1/2)", "(2/2)", "all"]
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) <= 110
    assert all(line.isascii() for line in lines)


def test_slowest_tasks_are_ten_by_time(record: RunRecord) -> None:
    for number in range(15):
        record.begin_task(str(number), f"task {number}")
        for _ in range(number):
            record.answer(Answer("a", str(number), "ok"))
    told = record.document("finished")["slowest_tasks"]
    assert [row["task"] for row in told] == [f"task {number}" for number in range(14, 4, -1)]
    assert len(slowest(record.slowest())) == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99.9, "99.9 s"), (185, "3 min 05 s"), (3599.6, "1 h 00 min"), (7260, "2 h 01 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_report_stays_small(record: RunRecord) -> None:
    wrong = {"msg": "x" * 100_000, "report": [{"kind": "gate", "passed": False, "checks": [], "timeline": []}] * 10}
    for number in range(300):
        record.answer(Answer(f"h{number}", "t", "failed", result=wrong))
    document = record.document("failed")
    assert (len(document["failures"]), len(document["gates"])) == (200, 1000)
    assert document["run"]["dropped"] == 100 + 2000
    assert "2100 entries were left out" in page(document)


def test_the_newest_reports_are_kept_and_other_files_left_alone(record: RunRecord, tmp_path: Path) -> None:
    for day in range(10, 18):
        for kind in ("html", "json"):
            (tmp_path / f"202611{day}T000000Z-site-{day}.{kind}").write_text("")
    (tmp_path / "notes.html").write_text("")
    prune(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        f"202611{day}T000000Z-site-{day}.json" for day in (15, 16, 17)
    ]
    assert len(list(tmp_path.glob("*.html"))) == 4
    record.answer(Answer("a", "t", "ok"))
    written = write(record.document("finished"), tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [written.name, written.with_suffix(".json").name, "notes.html"]
    )
    assert written.stat().st_mode & 0o777 == 0o640


def test_nothing_is_left_of_a_report_that_could_not_be_written(record: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write({**record.document("finished"), "hosts": [{}]}, tmp_path, 30)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write(record.document("finished"), tmp_path / "file", 30)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
