"""The lock and the journal as files: one holder, nothing half written, refusals that name the remedy."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from module_utils.devmentor.rollout import EVIDENCE, HISTORY, Journal, Lock, RolloutError

RUN, OTHER = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"
# A child of a process with threads must not be a fork of it.
PROCESSES = multiprocessing.get_context("spawn")


def document(run: str = RUN, seq: int = 1, **change: Any) -> dict[str, Any]:
    begun = {"kind": "update", "target": {"release": "1"}, "steps": [], "state": "running"}
    return {"run": run, "seq": seq, **begun, **change}


def step(phase: str = "done", **change: str) -> dict[str, str]:
    return {"tier": "qwen", "host": "h1", "phase": phase, "evidence": ""} | change


def test_the_first_has_the_lock_and_others_are_told_whose_it_is(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "rollout")
    assert lock.show(RUN)["held"] is False
    changed, seen = lock.acquire(RUN, "anna@c1")
    assert (changed, seen["mine"]) == (True, True)
    assert lock.acquire(RUN, "anna@c1")[0] is False
    changed, seen = lock.acquire(OTHER, "bob@c2")
    assert (changed, seen["mine"], seen["run"], seen["owner"]) == (False, False, RUN, "anna@c1")
    assert lock.release(OTHER) == (False, lock.show(OTHER))
    assert lock.release(RUN)[0] is True
    assert lock.acquire(OTHER, "bob@c2")[0] is True


def test_a_lock_is_taken_over_by_the_name_of_its_run_only(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.acquire(RUN, "anna@c1")
    assert lock.acquire(OTHER, "bob@c2", take_over="20250101T000000-cccccc")[1]["run"] == RUN
    assert lock.acquire(OTHER, "bob@c2", take_over=RUN, check=True)[0] is True
    assert lock.show()["run"] == RUN
    assert lock.acquire(OTHER, "bob@c2", take_over=RUN)[1]["mine"] is True
    assert lock.show(RUN) == {"held": True, "mine": False, "run": OTHER, "owner": "bob@c2", "age_s": 0}


def test_its_age_is_that_of_its_file_and_never_negative(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.acquire(RUN, "anna")
    for moved, said in ((-90, 90), (3600, 0)):
        at = time.time() + moved
        os.utime(tmp_path / "lock.json", (at, at))
        assert said <= lock.show()["age_s"] <= said + 5


def _want(directory: str, name: str, go: Any, results: Any) -> None:
    go.wait()
    results.put((name, Lock(Path(directory)).acquire(name, name)[1]["mine"]))


def test_of_several_at_once_exactly_one_has_it(tmp_path: Path) -> None:
    go, results = PROCESSES.Event(), PROCESSES.Queue()
    children = [PROCESSES.Process(target=_want, args=(str(tmp_path), f"run-{n}", go, results)) for n in range(4)]
    for child in children:
        child.start()
    go.set()
    answers = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    winners = [name for name, mine in answers if mine]
    assert len(winners) == 1
    assert Lock(tmp_path).show()["run"] == winners[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_what_cannot_be_read_is_no_free_lock_and_no_empty_journal(tmp_path: Path, content: str) -> None:
    for name in ("lock.json", "journal.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(RolloutError, match=r"lock\.json.*Remedy"):
        Lock(tmp_path).acquire(RUN, "anna")
    with pytest.raises(RolloutError, match=r"journal\.json.*Remedy"):
        Journal(tmp_path).read()
    with pytest.raises(RolloutError):
        Journal(tmp_path).write(document())


def test_entries_follow_each_other_and_the_same_one_again_is_no_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() == {}
    with pytest.raises(RolloutError, match="not begun"):
        journal.step(2, step())
    assert journal.write(document())[0] is True
    assert journal.write(document())[0] is False
    assert journal.step(2, step("began"))[0] is True
    assert journal.step(2, step("began"))[0] is False
    with pytest.raises(RolloutError, match="does not follow"):
        journal.step(4, step())
    journal.step(3, step("failed", evidence="x" * 2000))
    have = journal.read()
    assert (have["seq"], have["state"], len(have["steps"][-1]["evidence"])) == (3, "failed", EVIDENCE)
    assert journal.step(4, step("went_back"))[1]["state"] == "failed"
    assert journal.step(5, step("began"))[1]["state"] == "running"
    assert journal.finish(6, "finished", check=True)[0] is True
    assert journal.read()["state"] == "running"
    assert journal.finish(6, "finished")[1]["state"] == "finished"
    assert journal.finish(6, "finished")[0] is False


def test_an_open_roll_keeps_others_out_and_only_a_rollback_comes_past(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(document())
    with pytest.raises(RolloutError, match=r"is running.*rollback"):
        journal.write(document(OTHER))
    with pytest.raises(RolloutError, match="not before"):
        journal.write(document(seq=1, steps=[step()]))
    assert journal.write(document(seq=4))[0] is True
    assert journal.write(document(OTHER, kind="rollback"))[0] is True


def test_what_ended_goes_into_a_history_of_bounded_length(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    runs = [f"202601{n:02}T000000-aaaaaa" for n in range(1, HISTORY + 4)]
    for run in runs:
        journal.write(document(run))
        journal.finish(2, "finished")
    assert sorted(path.stem for path in (tmp_path / "history").iterdir()) == runs[2:-1]
    assert journal.read()["run"] == runs[-1]


def test_a_journal_that_lacks_what_it_is_about_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="needs kind, target"):
        Journal(tmp_path).write({"run": RUN, "steps": [], "state": "running", "seq": 1})
    with pytest.raises(RolloutError, match="not one of"):
        Journal(tmp_path).finish(1, "over")


def _write_for_ever(directory: str) -> None:
    journal = Journal(Path(directory))
    for seq in range(2, 100_000):
        journal.step(seq, step(evidence=f"{seq} " + "y" * 400))


def test_a_writer_that_is_killed_leaves_a_whole_journal_that_goes_on(tmp_path: Path) -> None:
    chance = random.Random(7)
    for _ in range(8):
        (tmp_path / "journal.json").unlink(missing_ok=True)
        Journal(tmp_path).write(document())
        child = PROCESSES.Process(target=_write_for_ever, args=(str(tmp_path),))
        child.start()
        while Journal(tmp_path).read()["seq"] < 3:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        have = json.loads((tmp_path / "journal.json").read_text())
        assert [entry["seq"] for entry in have["steps"]] == list(range(2, have["seq"] + 1))
        assert Journal(tmp_path).step(have["seq"] + 1, step())[0] is True
