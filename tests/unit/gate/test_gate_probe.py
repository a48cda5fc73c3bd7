"""Probes run side by side in processes; what hangs is cut, with all that it started."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from module_utils.devmentor.gate_probe import Answer, Job, Tell, run_jobs


def gone(pid: int) -> bool:
    """No process of that id runs; one that nobody has waited for is dead too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except FileNotFoundError:
        return True


def test_a_probe_that_hangs_is_cut_with_its_commands_and_holds_up_no_other(tmp_path: Path) -> None:
    def hang(tell: Tell) -> Answer:
        command = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(command.pid))
        tell("half of it")
        time.sleep(60)
        return Answer("pass", "never")

    began = time.monotonic()
    answers = run_jobs({"slow": Job(hang, 1.0), "quick": Job(lambda tell: Answer("pass", "at once"), 5.0)})
    assert time.monotonic() - began < 4
    assert answers["quick"] == Answer("pass", "at once")
    assert answers["slow"].result == "unknown"
    assert answers["slow"].evidence == "no answer within 1 s; until then: half of it"
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(pid)


def test_a_probe_that_dies_or_breaks_is_unknown() -> None:
    def die(tell: Tell) -> Answer:
        os._exit(3)

    def broken(tell: Tell) -> Answer:
        raise RuntimeError("boom")

    answers = run_jobs({"dead": Job(die, 5.0), "broken": Job(broken, 5.0)})
    assert answers["dead"] == Answer("unknown", "the probe ended without an answer (exit 3)")
    assert answers["broken"] == Answer("unknown", "RuntimeError: boom")


def test_probes_run_at_the_same_time() -> None:
    def slow(tell: Tell) -> Answer:
        time.sleep(1)
        return Answer("pass", "")

    began = time.monotonic()
    run_jobs({str(number): Job(slow, 5.0) for number in range(4)})
    assert time.monotonic() - began < 3
