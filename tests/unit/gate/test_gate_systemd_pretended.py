"""systemd units. systemctl is pretended here (there is no systemd); a lab's rolling update asks the real one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from gate_doubles import asked, told

from module_utils.devmentor.gate import Gate
from module_utils.devmentor.gate_options import Timing
from module_utils.devmentor.gate_parse import parse_checks
from module_utils.devmentor.gate_run import job_maker, make_plan

UNIT = {"type": "systemd", "unit": "qwen.service"}


class Pretended:
    """Answers `systemctl show` with these properties."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "show"
        (folder / "systemctl").write_text(f'#!/bin/sh\n[ "$1" = show ] && exec cat {self.file}\nexit 1\n')
        (folder / "systemctl").chmod(0o755)
        self.properties: dict[str, str] = {}
        self.set(LoadState="loaded", ActiveState="active", SubState="running", NRestarts="0", InvocationID="one")
        self.up_for(100)

    def set(self, **properties: str) -> None:
        self.properties |= properties
        self.file.write_text("".join(f"{key}={value}\n" for key, value in self.properties.items()))

    def up_for(self, seconds: float) -> None:
        self.set(ActiveEnterTimestampMonotonic=str(int((time.monotonic() - seconds) * 1e6)))


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Pretended(tmp_path)


def test_pretended_a_unit_must_be_active_and_up_for_long_enough(pretended: Pretended) -> None:
    result, evidence = told(UNIT)
    assert (result, evidence) == ("pass", "active (running) for 100 s, not restarted meanwhile")
    assert told({**UNIT, "min_uptime_seconds": 90})[0] == "pass"
    result, evidence = told({**UNIT, "min_uptime_seconds": 200})
    assert result == "fail"
    assert "200 s are needed" in evidence
    for state in ("activating", "failed", "inactive", "reloading"):
        pretended.set(ActiveState=state)
        assert told(UNIT)[0] == "fail", state
        assert told({**UNIT, "active": False})[0] == "pass"
    pretended.set(ActiveState="active")
    assert told({**UNIT, "active": False})[0] == "fail"
    pretended.set(LoadState="not-found")
    assert told(UNIT) == ("fail", "the unit is not-found")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"NRestarts": "1"}, "NRestarts 0 to 1"), ({"InvocationID": "two"}, "started anew meanwhile")],
)
def test_pretended_a_restart_meanwhile_fails(pretended: Pretended, change: dict[str, str], complaint: str) -> None:
    memory = asked(UNIT).memory
    pretended.set(**change)
    result, evidence = told(UNIT, memory=memory)
    assert result == "fail"
    assert complaint in evidence


def test_pretended_a_unit_that_comes_up_meanwhile_passes(pretended: Pretended) -> None:
    pretended.set(ActiveState="activating", InvocationID="early")
    memory = asked(UNIT).memory
    pretended.set(ActiveState="active", InvocationID="one")
    assert told(UNIT, memory=memory)[0] == "pass"


def test_pretended_a_restart_in_the_delay_counts(pretended: Pretended) -> None:
    checks = parse_checks([{"name": "unit", **UNIT}])
    gate = Gate(checks, Timing(initial_delay_seconds=0.2, failure_threshold=1), job_maker(make_plan({}, {}, {})))
    remember: Any = gate.remember

    def then_restart() -> None:
        remember()
        pretended.set(NRestarts="3")

    gate.remember = then_restart  # type: ignore[method-assign]
    outcome = gate.run()
    assert not outcome.passed
    assert "NRestarts 0 to 3" in outcome.checks[0]["evidence"]


def test_pretended_silence_is_unknown(pretended: Pretended, tmp_path: Path) -> None:
    pretended.file.write_text("")
    assert told(UNIT)[0] == "unknown"
    pretended.set(ActiveEnterTimestampMonotonic="")
    assert told({**UNIT, "min_uptime_seconds": 1})[0] == "unknown"
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    result, evidence = told(UNIT)
    assert result == "unknown"
    assert "connect to bus" in evidence


def test_without_systemctl_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result, evidence = told(UNIT)
    assert result == "unknown"
    assert "systemctl cannot be asked" in evidence
