"""Kubernetes' timing: delay, period, thresholds over all checks, and the deadline; probes are real processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from module_utils.devmentor.gate import TIMELINE_LIMIT, Gate, Outcome
from module_utils.devmentor.gate_options import Check, Timing
from module_utils.devmentor.gate_parse import parse_checks
from module_utils.devmentor.gate_probe import Answer, Job, Tell

PASS, FAIL, UNKNOWN = "pass", "fail", "unknown"


class Script:
    """Makes probes that answer in each round as written, the last result for ever."""

    def __init__(self, **results: list[str]) -> None:
        self.results = results
        self.limits: list[float] = []
        self.began: list[float] = []
        kinds = {"type": "tcp", "host": "127.0.0.1", "port": 1}
        self.checks = parse_checks([{"name": name, **kinds} for name in results])

    def make(self, check: Check, memory: Mapping[str, Any], limit: float) -> Job:
        left = self.results[check.name]
        result = left.pop(0) if len(left) > 1 else left[0]
        self.limits.append(limit)
        self.began.append(time.monotonic())
        return Job(lambda tell: Answer(result, f"told {result}"), limit)

    def run(self, once: bool = False, **timing: Any) -> Outcome:
        values = {"period_seconds": 0.05, "timeout_seconds": 5, "deadline_seconds": 20, **timing}
        return Gate(self.checks, Timing(**values), self.make).run(once)


def test_it_opens_after_enough_rounds_in_a_row_in_which_all_passed() -> None:
    script = Script(a=[PASS], b=[PASS, PASS, FAIL, PASS, PASS, PASS])
    outcome = script.run(success_threshold=3)
    assert (outcome.passed, outcome.rounds) == (True, 6)
    # One check alone never opens it.
    outcome = Script(a=[PASS, FAIL], b=[FAIL, PASS]).run(success_threshold=1, failure_threshold=2)
    assert (outcome.passed, outcome.rounds) == (False, 2)


def test_it_ends_early_after_too_many_rounds_in_a_row() -> None:
    outcome = Script(a=[FAIL, UNKNOWN, PASS, UNKNOWN, FAIL, FAIL]).run(success_threshold=2)
    assert (outcome.passed, outcome.rounds) == (False, 6)
    assert "3 rounds in a row did not pass" in outcome.message()


@pytest.mark.parametrize("result", [FAIL, UNKNOWN])
def test_only_pass_opens_it(result: str) -> None:
    outcome = Script(a=[result], b=[PASS]).run()
    assert not outcome.passed
    assert f"check 'a' (tcp): {result}: told {result}. Remedy: " in outcome.message()
    assert "'b'" not in outcome.message()


def test_without_a_failure_threshold_it_waits_for_the_deadline() -> None:
    began = time.monotonic()
    outcome = Script(a=[FAIL]).run(failure_threshold=0, deadline_seconds=1.0)
    assert 0.5 < time.monotonic() - began < 3
    assert outcome.rounds > 3
    assert "the deadline of 1 s" in outcome.message()
    assert Script(a=[*[FAIL] * 5, PASS]).run(failure_threshold=0).passed


def test_rounds_begin_a_period_apart_and_after_the_delay() -> None:
    script = Script(a=[PASS])
    began = time.monotonic()
    assert script.run(initial_delay_seconds=0.4, period_seconds=0.5, success_threshold=3).passed
    assert 0.4 <= script.began[0] - began < 3
    gaps = [later - earlier for earlier, later in zip(script.began, script.began[1:], strict=False)]
    assert min(gaps) > 0.45, gaps
    assert min(gaps) < 1, gaps  # one may be late where others work, too


def test_the_deadline_cuts_a_probe_too() -> None:
    class Hanging(Script):
        def make(self, check: Check, memory: Mapping[str, Any], limit: float) -> Job:
            def hang(tell: Tell) -> Answer:
                time.sleep(60)
                return Answer(PASS, "")

            return Job(hang, limit)

    began = time.monotonic()
    outcome = Hanging(a=[PASS]).run(deadline_seconds=0.5, timeout_seconds=30)
    assert time.monotonic() - began < 5
    assert outcome.checks[0]["result"] == UNKNOWN


def test_a_probe_has_its_timeout_and_a_canary_more() -> None:
    script = Script(a=[PASS])
    script.run(timeout_seconds=2)
    assert script.limits == [2]
    raw = [
        {"name": "a", "type": "canary", "of": "qwen"},
        {"name": "b", "type": "canary", "of": "qwen", "timeout_seconds": 3},
    ]
    assert [check.limit(Timing(timeout_seconds=5)) for check in parse_checks(raw)] == [30, 3]


def test_asked_once_there_is_one_round_without_delay() -> None:
    began = time.monotonic()
    outcome = Script(a=[FAIL, PASS]).run(once=True, initial_delay_seconds=15)
    assert time.monotonic() - began < 5
    assert (outcome.passed, outcome.rounds) == (False, 1)
    assert Script(a=[PASS]).run(once=True, success_threshold=9).passed


def test_the_timeline_has_changes_only() -> None:
    outcome = Script(a=[FAIL, FAIL, UNKNOWN, PASS, PASS, PASS]).run(success_threshold=3, failure_threshold=0)
    assert [(entry["name"], entry["result"]) for entry in outcome.timeline] == [
        ("a", FAIL),
        ("a", UNKNOWN),
        ("a", PASS),
    ]
    assert outcome.timeline[0]["at"] <= outcome.timeline[-1]["at"] <= outcome.waited_s


def test_the_timeline_is_bounded_and_keeps_both_ends() -> None:
    outcome = Outcome()
    for number in range(1000):
        outcome.note(float(number), "a", Answer(PASS, ""))
    assert len(outcome.timeline) == TIMELINE_LIMIT
    assert outcome.timeline_dropped == 1000 - TIMELINE_LIMIT
    assert (outcome.timeline[0]["at"], outcome.timeline[-1]["at"]) == (0.0, 999.0)
