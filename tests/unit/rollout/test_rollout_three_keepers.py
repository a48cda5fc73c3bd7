"""Of three keepers any may miss any write; what a majority has acknowledged is in the newest of every majority."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.devmentor.rollout import Journal, Lock, RolloutError

_spec = importlib.util.spec_from_file_location(
    "rollout_filters_of_three", Path(__file__).resolve().parents[3] / "filter_plugins/rollout.py"
)
assert _spec is not None
assert _spec.loader is not None
rollout = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rollout)

KEEPERS = ["h1", "h2", "h3"]
MAJORITIES = [list(some) for size in (2, 3) for some in itertools.combinations(KEEPERS, size)]
REACHED = st.sampled_from([set(some) for some in MAJORITIES] + [{name} for name in KEEPERS])
TARGET = {"release": "a1"}


class Keepers:
    """Their journals, and runs that write to those of them that they reach."""

    def __init__(self, directory: Path) -> None:
        self.journals = {name: Journal(directory / name, locked=True) for name in KEEPERS}
        self.locks = {name: Lock(directory / name) for name in KEEPERS}
        self.read: dict[str, dict[str, Any]] = {}  # run -> the newest that it saw
        self.runs: dict[str, int] = {}  # run whose begin a majority has -> its last entry
        self.acknowledged: list[tuple[str, int]] = []  # (host of the entry, entry)

    def newest(self, reached: list[str]) -> dict[str, Any]:
        answers = {name: {"journal": self.journals[name].read()} for name in reached}
        found: dict[str, Any] = rollout.journal_newest(answers, KEEPERS)
        return found

    def look(self, run: str, reached: set[str]) -> None:
        """Takes the lock, also from a run that lives, and where a majority grants it reads what those have."""
        for name in reached:
            self.locks[name].acquire(run, "anna@c1", take_over=self.locks[name].show()["run"])
        if len(reached) > 1 and run not in self.read:
            self.read[run] = self.newest(sorted(reached))

    def begin(self, run: str, reached: set[str]) -> None:
        if run not in self.read or run in self.runs:
            return
        document = rollout.rollout_document(self.read[run], run, "update", TARGET, "anna@c1")
        answers = self._ask(reached, lambda journal: journal.write(document))
        if rollout.journal_kept(answers, KEEPERS, document["seq"]) == "":
            self.runs[run] = document["seq"]

    def step(self, run: str, reached: set[str]) -> None:
        if run not in self.runs:
            return
        self.runs[run] += 1
        seq = self.runs[run]
        entry = {"tier": "qwen", "host": run, "phase": "done"}
        answers = self._ask(reached, lambda journal: journal.step(run, seq, entry))
        if rollout.journal_kept(answers, KEEPERS, seq) == "":
            self.acknowledged.append((run, seq))

    def _ask(self, reached: set[str], write: Any) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for name in sorted(reached):
            with contextlib.suppress(RolloutError):
                answers[name] = {"journal": write(self.journals[name])[1]}
        return answers


@pytest.fixture(autouse=True)
def _without_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


ACTIONS = st.tuples(st.sampled_from(["look", "begin", "step", "step"]), st.sampled_from(["r1", "r2"]), REACHED)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(ACTIONS, min_size=8, max_size=30))
def test_an_acknowledged_entry_is_never_lost(actions: list[tuple[str, str, set[str]]]) -> None:
    """Runs look, begin and write in any order, also those whose lock was taken over."""
    with tempfile.TemporaryDirectory() as directory:
        keepers = Keepers(Path(directory))
        for action, run, reached in actions:
            getattr(keepers, action)(run, reached)
        for majority in MAJORITIES:
            steps = keepers.newest(majority).get("steps", [])
            have = {(step["host"], step["seq"]) for step in steps}
            assert have >= set(keepers.acknowledged), majority
        copies: dict[Any, Any] = {}
        for journal in keepers.journals.values():
            if found := journal.read():
                steps = [{**step, "at": ""} for step in found["steps"]]
                same = copies.setdefault((rollout.place(found), found["writer"]), steps)
                assert steps == same, "entries of two runs are mixed"


def test_a_run_whose_lock_was_taken_over_acknowledges_nothing_more() -> None:
    with tempfile.TemporaryDirectory() as directory:
        keepers, all_of_them = Keepers(Path(directory)), set(KEEPERS)
        keepers.look("r1", all_of_them)
        keepers.begin("r1", all_of_them)
        keepers.look("r2", {"h2", "h3"})
        keepers.step("r1", {"h1", "h2"})
        assert keepers.acknowledged == [], "h2 has granted the lock to r2"
        keepers.begin("r2", all_of_them)
        keepers.step("r2", all_of_them)
        assert keepers.acknowledged == [("r2", 3)]


def test_a_keeper_that_missed_a_begin_takes_no_entries_of_that_run() -> None:
    with tempfile.TemporaryDirectory() as directory:
        keepers = Keepers(Path(directory))
        keepers.look("r1", set(KEEPERS))
        keepers.begin("r1", set(KEEPERS))
        keepers.step("r1", {"h3"})
        keepers.look("r2", {"h1", "h2"})
        keepers.begin("r2", {"h1", "h2"})
        keepers.look("r2", {"h3"})
        keepers.step("r2", set(KEEPERS))
        assert keepers.acknowledged == [("r2", 3)]
        assert keepers.journals["h3"].read()["writer"] == "r1"
        assert keepers.journals["h3"].read()["seq"] == 2
