"""The parts of `make chaos-rollout` that need no lab: what it calls true, explained, and a release that misbehaves."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.bench.rolling.load import Rates, Result
from tests.bench.rolling.records import Record
from tests.bench.rolling.serving import Sample
from tests.chaos.rollout import checker, journal, pretended_misbehaving, report, rolls, versions
from tests.chaos.rollout.expect import EXPECTED, STOPPED, STRUCK
from tests.chaos.rollout.faults import FAULTS, TIER

OLD, NEW = "0.1.0-000000000000", "0.1.0-111111111111"
KEEPERS = ["a", "b", "c"]


def document(*phases: tuple[str, str], state: str = "running", run: str = "r1", seq: int = 5) -> dict[str, Any]:
    steps = [{"tier": TIER, "host": host, "phase": phase} for host, phase in phases]
    return {"run": run, "kind": "update", "target": {}, "steps": steps, "state": state, "seq": seq}


def test_a_majority_has_the_journal_and_the_lock_or_nobody_knows() -> None:
    old, new = document(seq=4), document(seq=5)
    assert journal.newest({"a": old, "b": new, "c": None}, KEEPERS) == new
    assert journal.newest({"a": new, "b": None, "c": None}, KEEPERS) is None
    assert journal.newest({"a": {}, "b": {}, "c": {}}, KEEPERS) == {}
    mine, other = {"run": "r1", "owner": "me@x"}, {"run": "r2", "owner": "you@y"}
    assert journal.holder({"a": mine, "b": mine, "c": other}, KEEPERS) == ("r1", "me@x")
    assert journal.holder({"a": mine, "b": {}, "c": None}, KEEPERS) == ("", "")


def test_how_far_a_roll_is() -> None:
    before = document(("q1", "done"), state="finished", run="r0", seq=9)
    assert journal.moment(before, "", before) == ("", "", "")
    assert journal.moment(None, "r1", before) == ("", "", "")
    assert journal.moment(before, "r1", before) == ("", "", journal.LOCKED)
    assert journal.moment(document(seq=1), "r1", before) == ("", "", journal.BEGUN)
    assert journal.moment(document(("q1", "began")), "r1", before) == (TIER, "q1", "began")
    # Gone on with: the entries that were there are not its own.
    open_one = document(("q1", "began"), seq=2)
    assert journal.moment(document(("q1", "began"), seq=3), "r2", open_one) == ("", "", journal.BEGUN)
    again = document(("q1", "began"), ("q1", "began"), seq=4)
    assert journal.moment(again, "r2", open_one) == (TIER, "q1", "began")


def test_a_journal_that_tells_the_truth_has_no_findings() -> None:
    current = {"q1": NEW, "q2": OLD, "q3": OLD}
    for phase in ("began", "drained", "failed"):
        assert journal.untrue(document(("q1", "done"), ("q2", phase)), TIER, current, OLD) == []
        assert journal.untrue(document(("q1", "done"), ("q2", phase)), TIER, {**current, "q2": NEW}, OLD) == []
    assert journal.untrue(document(("q1", "done"), ("q2", "went_back"), state="failed"), TIER, current, OLD) == []
    whole = document(*[(host, "done") for host in current], state="finished")
    assert journal.untrue(whole, TIER, dict.fromkeys(current, NEW), OLD) == []
    assert journal.untrue(document(("q1", "done")), TIER, {"q1": ""}, OLD) == [], "a host that is away says nothing"


@pytest.mark.parametrize(
    ("found", "current", "words"),
    [
        (document(("q1", "done")), {"q1": OLD}, "q1 is done; it has"),
        (document(("q1", "went_back")), {"q1": NEW}, "q1 went back; it has"),
        (document(), {"q1": NEW}, "q1 was not touched; it has"),
        (document(("q1", "drained"), state="finished"), {"q1": NEW}, "q1 is still drained in it"),
        (document(("q1", "done"), state="finished"), {"q1": NEW, "q2": OLD}, "q2 have"),
        (document(("q1", "done"), state="rolled_back"), {"q1": NEW}, "q1 do not have"),
        (None, {"q1": OLD}, "no majority"),
    ],
)
def test_a_journal_that_lies_is_found(found: dict[str, Any] | None, current: dict[str, str], words: str) -> None:
    lines = journal.untrue(found, TIER, current, OLD)
    assert any(words in line for line in lines), lines


def result(*more: Record, least: int = 3) -> Result:
    """A roll from 60 s to 100 s, struck at 70 s."""
    well = [Record("chat", n, n, n + 0.1, "ok") for n in range(120)]
    serving = [Sample(n, "g1", {"qwen": ["q"] * (least if n == 80 else 3), "pbml": ["p"] * 3}) for n in range(120)]
    marks = [(60.0, checker.ROLLS), (70.0, STRUCK), (100.0, STOPPED)]
    return Result("now", 120.0, Rates(), marks, [*well, *more], serving, [], [], 0.01, (1.0, 1.0))


def failed(kind: str, second: float, outcome: str) -> Record:
    return Record(kind, second, second, second + 0.2, outcome, detail="why")


def test_a_round_in_which_nothing_failed_has_no_findings() -> None:
    for expected in EXPECTED.values():
        numbers, found = checker.judge(expected, result())
        assert found == []
        json.dumps(numbers)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_failure_that_the_fault_does_not_explain_is_found(name: str) -> None:
    found = checker.judge(EXPECTED[name], result(failed("chat", 75, "503 engine_unavailable")))[1]
    assert any("chat meant for +5.0 s after the fault: 503 engine_unavailable" in line for line in found)


@pytest.mark.parametrize(("name", "kind", "outcome"), [
    ("erring", "chat", "500 chaos_pretended"), ("host_lost", "sql write", "OperationalError"),
])  # fmt: skip
def test_what_the_fault_explains_is_no_finding_in_its_time_only(name: str, kind: str, outcome: str) -> None:
    numbers, found = checker.judge(EXPECTED[name], result(failed(kind, 75, outcome)))
    assert found == []
    assert numbers["explained"] == {f"{kind}: {outcome}": 1}
    for second in (50, 115):
        assert len(checker.judge(EXPECTED[name], result(failed(kind, second, outcome)))[1]) == 1
    late = Record(kind, 69.9, 69.9, 75.0, outcome)
    assert checker.judge(EXPECTED[name], result(late))[1] == [], "what was under way may fail, too"


def test_instances_that_are_missing_are_found_unless_the_fault_took_them() -> None:
    assert "qwen had 2 serving instances of 3" in checker.judge(EXPECTED["none"], result(least=2))[1][0]
    assert checker.judge(EXPECTED["host_lost"], result(least=2))[1] == []
    assert len(checker.judge(EXPECTED["host_lost"], result(least=1))[1]) == 1


def test_something_lost_is_found_whatever_the_fault() -> None:
    gone = result()
    gone.lost.append("document d")
    assert checker.judge(EXPECTED["host_lost"], gone)[1] == ["document d"]


def test_a_roll_has_to_end_as_the_table_says() -> None:
    expected = EXPECTED["host_lost"]
    assert checker.ended(expected, 2, "lab3 is\n   lost: it does not", "failed", []) == []
    wrong = checker.ended(expected, 0, "fine", "running", ["a"])
    assert len(wrong) == 4
    assert checker.ended(EXPECTED["none"], 0, "", "finished", []) == []


def test_every_fault_is_in_the_table_and_every_release_can_be_made() -> None:
    assert set(FAULTS) == set(EXPECTED)
    for name, fault in FAULTS.items():
        if fault.release:
            assert EXPECTED[name].journal == "rolled_back", "a bad release has to be taken back"


async def answers(how: str, count: int) -> list[tuple[int, float]]:
    """(status, seconds) of so many chats and then of /ready, of an application that misbehaves."""

    async def chat(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/v1/chat/completions", chat), Route("/ready", chat)])
    pretended_misbehaving.misbehave(app, how)
    found = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://q") as client:
        for path in ["/v1/chat/completions"] * count + ["/ready"]:
            began = time.monotonic()
            found.append(((await client.get(path)).status_code, time.monotonic() - began))
    return found


async def test_a_release_misbehaves_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretended_misbehaving, "SLOW_S", 0.4)
    assert [status for status, _ in await answers("never_ready", 2)] == [200, 200, 503]
    assert [status for status, _ in await answers("erring", 5)] == [200, 200, 200, 500, 500, 200]
    slow = await answers("slow", 4)
    assert {status for status, _ in slow} == {200}
    assert slow[3][1] >= 0.4
    with pytest.raises(ValueError, match="no route"):
        pretended_misbehaving.misbehave(Starlette(), "slow")


def test_a_copy_of_the_services_misbehaves_and_the_services_do_not(tmp_path: Path) -> None:
    copy = versions.misbehaving("erring", copies=tmp_path)
    text = (copy / versions.MAIN).read_text()
    compile(text, "main", "exec")
    assert 'misbehave(app, "erring")\n    server.run(app, settings)' in text
    assert (copy / versions.ADDED).is_file()
    assert (copy / "src" / "devmentor_ha").is_dir()
    assert not (copy / "src" / "devmentor_ha").is_symlink()
    assert not (versions.SERVICES / versions.ADDED).exists()
    assert versions.RUN in (versions.SERVICES / versions.MAIN).read_text()


def test_sources_that_changed_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "services"
    (source / versions.MAIN).parent.mkdir(parents=True)
    (source / versions.MAIN).write_text("serve()\n")
    with pytest.raises(ValueError, match="does not have the one line"):
        versions.misbehaving("slow", source, tmp_path / "copies")


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_roll_is_killed_with_everything_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(rolls, "playbook_command", lambda *_: ([sys.executable, "-c", script], {}))
    roll = rolls.Roll(tmp_path, "rolling_update", {}, tmp_path / "logs" / "roll.log").start()
    assert rolls.until(roll, lambda: roll.output.endswith("\n"), 30)
    child = int(roll.output)
    assert alive(child)
    roll.kill()
    assert not roll.running
    end = time.monotonic() + 10
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child)
    assert roll.wait(1) == -9
    roll.kill()


def test_keepers_are_read_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"a": json.dumps(document()), "b": json.dumps(document()), "c": "{"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "journal.json").write_text(text)
    (tmp_path / "a" / "lock.json").write_text('{"run": "r1", "owner": "me"}')
    keepers = rolls.Keepers.__new__(rolls.Keepers)
    keepers.names = KEEPERS
    current = {}

    def host(name: str) -> Any:
        current["name"] = name
        return SimpleNamespace(require_init=os.getpid)

    keepers._lab = SimpleNamespace(host=host)
    real = rolls.Keepers._read

    def read(self: Any, name: str, file: str) -> Any:
        monkeypatch.setattr(rolls, "STATE", str(tmp_path / name))
        return real(self, name, file)

    monkeypatch.setattr(rolls.Keepers, "_read", read)
    assert keepers.journal() == document()
    assert keepers.lock() == ("", ""), "one of three is no majority"
    assert keepers.held() == ["a"]


def test_the_page_is_written(tmp_path: Path) -> None:
    entry = {
        "fault": "erring", "text": "t", "seed": 1, "round": 1, "at": "now", "load": [1.0, 2.0], "where": [], "rolls": 2,
        "seconds": 9.0, "behind_s": 0.1, "commit": "abc", "problems": [],
        **checker.judge(EXPECTED["erring"], result())[0],
    }  # fmt: skip
    page = report.written(report.PAGE.read_text(), [entry])
    assert "| `erring` | 1 | 2 | 120 | 0 | none | none | 0 | 3, 3 | 0 | 1.0 to 2.0 | 0.10 | abc |" in page
    before, after = report.rows(report.PAGE.read_text()), report.rows(page)
    assert len(before) > 1
    assert after == before | {"erring": after["erring"]}, "the rows of other faults stay, each with its commit"
    assert all(f"| `{name}`: " in page for name in EXPECTED)
    assert report.written(page, []) == page, "without rounds it keeps what it has"
    assert report.expectations() in report.PAGE.read_text(), "python -m tests.chaos.rollout.report writes it"
