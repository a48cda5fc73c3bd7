"""When service_units acts: decided from state, so an interrupted run is finished by the next one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from module_utils.devmentor.units import UnitError, UnitState, Want, changed_at, decide, parse_show

RUNNING = UnitState("loaded", "active", "enabled", 100.0, False, ("/lib/x.service",))


def want(**changes: object) -> Want:
    values: dict[str, object] = {
        "name": "x.service", "state": "started", "enabled": True, "masked": False, "restart_on": (), "reload_on": ()
    }
    return Want(**{**values, **changes})  # type: ignore[arg-type]


def verbs(actions: list[tuple[str, str]]) -> list[str]:
    return [verb for verb, _ in actions]


def test_nothing_to_do() -> None:
    assert decide(want(restart_on=("/etc/x",)), RUNNING, 100.0, {"/etc/x": 99.9, "/lib/x.service": 1.0}) == []


def test_a_file_newer_than_the_start_restarts_and_says_which() -> None:
    actions = decide(want(restart_on=("/etc/x",)), RUNNING, 100.0, {"/etc/x": 100.1})
    assert verbs(actions) == ["restart"]
    assert "/etc/x" in actions[0][1]


def test_the_unit_file_itself_counts() -> None:
    assert verbs(decide(want(), RUNNING, 100.0, {"/lib/x.service": 101.0})) == ["restart"]


def test_reload_is_measured_from_the_last_reload() -> None:
    times = {"/etc/x": 150.0}
    assert verbs(decide(want(reload_on=("/etc/x",)), RUNNING, 100.0, times)) == ["reload"]
    assert decide(want(reload_on=("/etc/x",)), RUNNING, 151.0, times) == []


def test_a_restart_makes_the_reload_unnecessary() -> None:
    times = {"/etc/x": 150.0, "/etc/y": 150.0}
    assert verbs(decide(want(restart_on=("/etc/y",), reload_on=("/etc/x",)), RUNNING, 100.0, times)) == ["restart"]


def test_stopped_disabled_and_failed_units_come_up() -> None:
    state = UnitState("loaded", "failed", "disabled", 0.0, False, ())
    assert verbs(decide(want(), state, 0.0, {})) == ["enable", "start"]


def test_stop_and_mask() -> None:
    assert verbs(decide(want(state="stopped", enabled=False), RUNNING, 100.0, {})) == ["disable", "stop"]
    assert verbs(decide(want(masked=True), RUNNING, 100.0, {})) == ["stop", "mask"]
    masked = UnitState("masked", "inactive", "masked", 0.0, False, ())
    assert decide(want(masked=True), masked, 0.0, {}) == []


def test_a_unit_that_does_not_exist_is_an_error_unless_it_is_to_be_stopped() -> None:
    missing = UnitState("not-found", "inactive", "", 0.0, False, ())
    with pytest.raises(UnitError, match=r"x\.service: there is no such unit"):
        decide(want(), missing, 0.0, {})
    assert decide(want(state="stopped", enabled=False), missing, 0.0, {}) == []


def test_parse_show() -> None:
    text = (
        "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nInactiveExitTimestampMonotonic=2500000\n"
        "NeedDaemonReload=no\nFragmentPath=/lib/x.service\nDropInPaths=/etc/a.conf /etc/b.conf\n"
    )
    state = parse_show(text, boot=1000.0)
    assert state.started == 1002.5
    assert state.files == ("/lib/x.service", "/etc/a.conf", "/etc/b.conf")
    assert parse_show("InactiveExitTimestampMonotonic=0\n", boot=1000.0).started == 0.0


def test_a_switched_link_and_an_old_file_renamed_into_place_count_as_new(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("x")
    os.utime(old, (1.0, 1.0))
    before = time.time() - 5
    link = tmp_path / "current"
    link.symlink_to(old)
    assert changed_at(str(link)) > before
    renamed = tmp_path / "renamed"
    old.rename(renamed)
    assert changed_at(str(renamed)) > before
    assert changed_at(str(tmp_path / "none")) == 0.0


def test_a_slice_is_never_restarted_because_that_would_stop_its_services() -> None:
    file = "/etc/systemd/system/devmentor-qwen.slice"
    limits = UnitState("loaded", "active", "static", 10.0, False, (file,))
    assert decide(want(name="devmentor-qwen.slice"), limits, 10.0, {file: 20.0}) == []
