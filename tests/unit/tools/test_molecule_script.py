"""tools/molecule.sh with a pretended molecule and a pretended lab: what runs, in which order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "molecule.sh"

# Says what it was asked, and fails the tests of the scenario `broken`.
PRETENDED = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in "test --scenario-name broken "*) exit 1 ;; esac
"""
DOWN = "python -m lab down --inventory molecule/inventory"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("molecule", "python"):
        program = tmp_path / name
        program.write_text(PRETENDED)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def run(*scenarios: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *scenarios], capture_output=True, text=True, timeout=60, check=False)


def relevant(calls: Path) -> list[str]:
    """The tests and the removals of hosts."""
    return [line for line in calls.read_text().splitlines() if line == DOWN or line.startswith("molecule test")]


def test_scenarios_that_pass_share_their_hosts(calls: Path) -> None:
    done = run("one", "two")
    assert done.returncode == 0
    assert done.stdout.endswith("molecule: 2 passed, 0 failed\n")
    tests = [f"molecule test --scenario-name {name} --destroy never" for name in ("one", "two")]
    assert relevant(calls) == [*tests, DOWN]


def test_one_that_fails_leaves_the_next_nothing(calls: Path) -> None:
    done = run("broken", "two")
    assert done.returncode == 1
    assert done.stdout.endswith("molecule: 1 passed, 1 failed: broken\n")
    tests = [f"molecule test --scenario-name {name} --destroy never" for name in ("broken", "two")]
    assert relevant(calls) == [tests[0], DOWN, tests[1], DOWN]
