"""A roll that is killed at each of its entries and gone on with. The roll is a pretended one: a process that takes a
lock, writes a journal and switches links, all of them files of one folder."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.rollout import faults, rolls
from tests.chaos.rollout.faults import Scene

HOSTS = ["q1", "q2"]
PRETENDED = """
import json, sys, time
from pathlib import Path
folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
lock, path = folder / "lock.json", folder / "journal.json"

def put(file, document):
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.rename(file)
    time.sleep(0.6)

number = len(list(folder.glob("run-*")))
(folder / f"run-{number}").touch()
if lock.exists() and json.loads(lock.read_text())["run"] != given.get("rollout_take_over"):
    sys.exit("another one has held it for 0:00:01: " + lock.read_text())
put(lock, {"run": f"r{number}", "owner": "me@here"})
journal = json.loads(path.read_text()) if path.exists() else {}
if journal.get("state") != "running":
    journal = {"run": f"r{number}", "kind": "update", "target": {}, "steps": [], "state": "running", "seq": 0}
journal["seq"] += 1
put(path, journal)
done = {step["host"] for step in journal["steps"] if step["phase"] == "done"}
for host in HOSTS:
    for phase in ("began", "drained", "done") if host not in done else ():
        if phase == "done":
            (folder / host).write_text("new")
        journal["steps"].append({"tier": "qwen", "host": host, "phase": phase})
        journal["seq"] += 1
        put(path, journal)
journal.update(state=STATE, seq=journal["seq"] + 1)
put(path, journal)
lock.unlink()
"""


class Immediately(random.Random):
    def uniform(self, low: float, high: float) -> float:
        return low


def scene_of(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str = "finished") -> Scene:
    script = PRETENDED.replace("HOSTS", repr(HOSTS)).replace("STATE", repr(state))
    for host in HOSTS:
        (folder / host).write_text("old")

    def command(_path: Path, _inventory: Path, _word: str, variables: str) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", script, str(folder), variables], {}

    def read(_self: Any, _name: str, file: str) -> Any:
        path = folder / file
        return json.loads(path.read_text()) if path.exists() else {}

    monkeypatch.setattr(rolls, "playbook_command", command)
    monkeypatch.setattr(rolls.Keepers, "_read", read)
    monkeypatch.setattr(faults, "releases", lambda *_: {host: (folder / host).read_text() for host in HOSTS})
    monkeypatch.setattr(faults, "LINGERS_S", 0.0)
    keepers = rolls.Keepers.__new__(rolls.Keepers)
    keepers.names = ["a", "b", "c"]
    deployed = SimpleNamespace(inventory=folder, names=lambda _group: HOSTS)
    load = SimpleNamespace(mark=lambda _label: None)
    return Scene(deployed, keepers, load, {}, "old", Immediately(1), folder / "logs")


def test_a_roll_is_killed_once_at_each_entry_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(tmp_path, monkeypatch)
    roll = faults.killed_everywhere(scene)
    assert roll.wait(30) == 0
    assert scene.problems == []
    kills = scene.rolls - 1
    # Locked, begun, and three entries of each host; a fast machine may pass one between two looks.
    assert 6 <= kills <= 2 + 3 * len(HOSTS)
    assert scene.notes == [f"killed {kills} times"]
    assert scene.check_journal("after")["state"] == "finished"
    assert scene.problems == []
    assert scene.keepers.lock() == ("", "")


def test_a_journal_that_is_closed_too_early_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(tmp_path, monkeypatch)
    roll = scene.roll()
    assert roll.wait(60) == 0
    (tmp_path / "q2").write_text("old")
    scene.check_journal("after")
    assert any("q2 is done; it has old" in line for line in scene.problems)


def test_a_second_roll_has_to_be_refused_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(tmp_path, monkeypatch)
    roll = faults.struck_at("began", faults.second_roll)(scene)
    assert roll.wait(60) == 0
    assert scene.problems == []
    assert scene.rolls == 2
    # The guard: a roll that lets the second one in is a finding.
    monkeypatch.setattr(rolls, "playbook_command", lambda *_: ([sys.executable, "-c", "pass"], {}))
    (tmp_path / "lock.json").write_text('{"run": "r9", "owner": "me@here"}')
    faults.second_roll(scene)
    assert any("was not refused" in line for line in scene.problems)
    assert any("does not say 'r9'" in line for line in scene.problems)
