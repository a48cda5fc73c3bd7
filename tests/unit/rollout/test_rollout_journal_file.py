"""One keeper's copy of the journal: whole after kill -9, and never mixed from two runs."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from module_utils.devmentor.rollout import HISTORY, Journal, RolloutError

TARGET = {"release": "a1"}


def begin(run: str = "r1", after: tuple[int, int] = (0, 0), **change: Any) -> dict[str, Any]:
    return {
        "run": run, "writer": run, "kind": "update", "target": TARGET, "owner": "anna@c1", "state": "running",
        "steps": [], "term": after[0] + 1, "seq": after[1] + 1, "after": list(after), **change,
    }  # fmt: skip


def turn(phase: str = "began", host: str = "h1", **change: Any) -> dict[str, Any]:
    return {"tier": "qwen", "host": host, "phase": phase, "evidence": "", **change}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "rollout"


@pytest.fixture
def journal(directory: Path) -> Journal:
    return Journal(directory)


def test_a_roll_from_its_first_entry_to_its_last(journal: Journal, directory: Path) -> None:
    assert journal.read() == {}
    assert journal.write(begin()) == (True, begin())
    assert journal.write(begin()) == (False, begin())
    journal.step("r1", 2, turn("began"))
    changed, now = journal.step("r1", 3, turn("done", before="a0"))
    assert changed
    assert [(step["seq"], step["phase"]) for step in now["steps"]] == [(2, "began"), (3, "done")]
    assert now["steps"][1]["at"]
    assert journal.step("r1", 3, turn("done", before="a0")) == (False, now), "asked twice, written once"
    changed, now = journal.finish("r1", 4, "finished")
    assert changed
    assert (now["state"], now["seq"]) == ("finished", 4)
    assert journal.finish("r1", 4, "finished") == (False, now)
    assert journal.read() == now
    assert (directory / "journal.json").stat().st_mode & 0o777 == 0o600


def test_states_follow_the_phases(journal: Journal) -> None:
    journal.write(begin())
    journal.step("r1", 2, turn("done", "h0"))
    states = []
    for seq, phase in enumerate(("began", "failed", "went_back", "began"), start=3):
        states.append(journal.step("r1", seq, turn(phase))[1]["state"])
    assert states == ["running", "failed", "failed", "running"]


def test_entries_follow_one_another(journal: Journal) -> None:
    with pytest.raises(RolloutError, match="not begun on this keeper"):
        journal.step("r1", 2, turn())
    journal.write(begin())
    journal.step("r1", 2, turn())
    for seq in (0, 1, 4):
        with pytest.raises(RolloutError, match=f"at entry 2; entry {seq} does not follow"):
            journal.step("r1", seq, turn("drained"))
        with pytest.raises(RolloutError, match="does not follow"):
            journal.finish("r1", seq, "finished")
    with pytest.raises(RolloutError, match="at entry 2; entry 2 does not follow"):
        journal.step("r1", 2, turn("drained"))
    assert journal.read()["seq"] == 2


def test_a_run_that_was_taken_over_writes_no_more(journal: Journal) -> None:
    journal.write(begin())
    journal.write({**journal.read(), "writer": "r2", "term": 2, "seq": 2, "after": [1, 1]})
    for action in (lambda: journal.step("r1", 3, turn()), lambda: journal.finish("r1", 3, "finished")):
        with pytest.raises(RolloutError, match="written by r2, not by r1"):
            action()
    journal.step("r2", 3, turn())


def test_a_keeper_that_knows_more_refuses(journal: Journal) -> None:
    journal.write(begin(after=(3, 30)))
    for after in ((0, 0), (3, 40), (4, 30)):
        with pytest.raises(RolloutError, match="entry 31 of r1, which r2 does not know"):
            journal.write(begin("r2", after, kind="rollback"))
    journal.write(begin("r2", (4, 31), kind="rollback"))


def test_a_keeper_that_was_away_takes_the_newest(journal: Journal) -> None:
    journal.write(begin())
    newest = {**begin(), "term": 5, "seq": 90, "after": [4, 89], "steps": [turn("done")]}
    assert journal.write(newest)[0]
    assert journal.read()["seq"] == 90


def test_another_roll_waits_until_this_one_has_ended(journal: Journal, directory: Path) -> None:
    journal.write(begin())
    with pytest.raises(RolloutError, match=r"r1 is running\. Remedy: finish it .*rollback\.yml.*rollout_abandon=r1"):
        journal.write(begin("r2", (1, 1)))
    with pytest.raises(RolloutError, match="r1 is running"):
        journal.write(begin("r2", (1, 1), abandons="r0"))
    journal.write(begin("r2", (1, 1), abandons="r1"))
    assert json.loads((directory / "history/r1.json").read_text())["state"] == "abandoned"
    journal.write(begin("r3", (2, 2), kind="rollback"))
    journal.finish("r3", 4, "rolled_back")
    journal.write(begin("r4", (3, 4)))
    assert sorted(file.name for file in (directory / "history").iterdir()) == ["r1.json", "r2.json", "r3.json"]


def test_a_roll_with_turns_that_are_left_is_not_finished(journal: Journal) -> None:
    journal.write(begin())
    journal.step("r1", 2, turn("failed", "h1"))
    journal.step("r1", 3, turn("done", "h2"))
    assert journal.finish("r1", 4, "finished")[1]["state"] == "failed"
    journal.step("r1", 5, turn("went_back", "h1"))
    assert journal.finish("r1", 6, "finished")[1]["state"] == "finished"


def test_the_history_keeps_the_last(journal: Journal, directory: Path) -> None:
    for number in range(HISTORY + 5):
        journal.write(begin(f"r{number}", (number, number), state="finished"))
        time.sleep(0.002)  # their order is that of the files' times
    names = {file.stem for file in (directory / "history").iterdir()}
    assert names == {f"r{number}" for number in range(4, HISTORY + 4)}


def test_what_is_written_is_bounded(journal: Journal) -> None:
    journal.write(begin(steps=[turn(evidence="x" * 5000)]))
    journal.step("r1", 2, turn(evidence={"a": "x" * 5000}))
    assert [len(step["evidence"]) for step in journal.read()["steps"]] == [500, 500]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"seq": 1, "steps": []}', json.dumps({**begin(), "state": "?"}),
     json.dumps({**begin(), "steps": ["x"]}), json.dumps({**begin(), "seq": "1"})],
)  # fmt: skip
def test_a_journal_that_cannot_be_understood_is_an_error(journal: Journal, directory: Path, content: str) -> None:
    directory.mkdir()
    file = directory / "journal.json"
    file.write_text(content)
    actions: list[Callable[[], Any]] = [
        journal.read,
        lambda: journal.write(begin(after=(9, 9))),
        lambda: journal.step("r1", 2, turn()),
        lambda: journal.finish("r1", 2, "finished"),
    ]
    for action in actions:
        with pytest.raises(RolloutError, match=rf"{file}.*Remedy: copy the file from another keeper"):
            action()
    assert file.read_text() == content


@pytest.mark.parametrize("wrong", [{"run": "../x"}, {"seq": None}, {"steps": {}}, {"target": "a1"}])
def test_a_document_that_is_no_journal_is_refused(journal: Journal, directory: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(RolloutError):
        journal.write({**begin(), **wrong})
    assert not (directory / "journal.json").exists()


def test_check_mode_writes_nothing(journal: Journal, directory: Path) -> None:
    assert journal.write(begin(), check=True)[0]
    assert not directory.exists()
    journal.write(begin())
    assert journal.step("r1", 2, turn(), check=True)[1]["seq"] == 2
    assert journal.finish("r1", 2, "finished", check=True)[1]["state"] == "finished"
    assert journal.read() == begin()


def _write_until_killed(directory: Path, acknowledge: int) -> None:
    """Rolls for ever; says the number of each entry once it is written."""
    journal = Journal(directory)
    while True:
        have = journal.read()
        after = (have["term"], have["seq"]) if have else (0, 0)
        run = f"r{after[0] + 1}"
        # One that was killed in the middle is open: the next one resumes it.
        first = begin(run, after)
        if have.get("state") == "running":
            first |= {"run": have["run"], "steps": have["steps"]}
        journal.write(first)
        for seq in itertools.count(first["seq"] + 1):
            os.write(acknowledge, b"%d\n" % (seq - 1))
            if seq == first["seq"] + 6:
                journal.finish(run, seq, "finished")
                os.write(acknowledge, b"%d\n" % seq)
                break
            journal.step(run, seq, turn("done", evidence="x" * 400))


def test_the_journal_is_whole_and_nothing_acknowledged_is_lost_after_kill_9(directory: Path) -> None:
    directory.mkdir()
    chance = random.Random(7)
    written = 0
    for _ in range(50):
        seen, acknowledge = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _write_until_killed(directory, acknowledge)
            finally:
                os._exit(1)
        os.close(acknowledge)
        os.read(seen, 1)  # it writes
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with os.fdopen(seen) as lines:
            # The first digit of the first line was read above; a later number is never smaller.
            numbers = [int(line) for line in lines.read().split("\n")[1:-1]]
        have = Journal(directory).read()
        assert have["seq"] >= max([written, *numbers])
        written = have["seq"]
        for file in (directory / "history").glob("*.json"):
            assert json.loads(file.read_text())["run"] == file.stem
    assert written > 100
    Journal(directory).write(begin("last", (10**6, written), kind="rollback"))
    assert list(directory.glob(".new-*")) == [], "what was left half written is cleared away"


def test_an_update_that_every_host_went_back_from_is_taken_back(journal: Journal) -> None:
    journal.write(begin())
    journal.step("r1", 2, turn("failed", "h1"))
    assert journal.step("r1", 3, turn("went_back", "h1"))[1]["state"] == "rolled_back"
    # A mended one may begin, and where another host has the new release already it may not.
    journal.write(begin("r2", (1, 3)))
    journal.step("r2", 5, turn("done", "h1"))
    journal.step("r2", 6, turn("failed", "h2"))
    assert journal.step("r2", 7, turn("went_back", "h2"))[1]["state"] == "failed"
