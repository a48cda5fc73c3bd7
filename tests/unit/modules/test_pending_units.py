"""What config_files says of the units that read its files. systemctl is pretended (there is no systemd here); files,
clocks and listeners are real. The lab's second run and molecule ask the real one."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules.pretended_systemctl import PretendedSystemctl

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def unit(path: Path, **more: Any) -> dict[str, Any]:
    return {"name": "x.service", "enabled": True, "restart_on": [str(path)], **more}


def configured(run_module: Run, path: Path, **more: Any) -> dict[str, Any]:
    owner = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
    files = [{"path": str(path), "content": "a = 1\n", **owner}]
    result = run_module("config_files", files=files, units=[unit(path, **more)])
    assert not result["failed"], result
    return result


def test_a_file_that_is_new_is_pending_and_nothing_is_done(
    tmp_path: Path, run_module: Run, systemctl: PretendedSystemctl
) -> None:
    systemctl.began(time.time() - 10)
    result = configured(run_module, tmp_path / "x.conf")
    assert result["pending"] == [f"x.service: restart (newer than the process: {tmp_path}/x.conf)"]
    assert systemctl.asked() == ""


def test_a_process_that_has_read_the_file_has_nothing_pending(
    tmp_path: Path, run_module: Run, systemctl: PretendedSystemctl, listener: socket.socket
) -> None:
    configured(run_module, tmp_path / "x.conf")
    systemctl.began(time.time() + 1)
    wait = {"port": listener.getsockname()[1]}
    assert configured(run_module, tmp_path / "x.conf", wait_for=wait)["pending"] == []


def test_a_process_that_does_not_answer_is_pending(
    tmp_path: Path, run_module: Run, systemctl: PretendedSystemctl, listener: socket.socket
) -> None:
    configured(run_module, tmp_path / "x.conf")
    systemctl.began(time.time() + 1)
    port = listener.getsockname()[1]
    listener.close()
    pending = configured(run_module, tmp_path / "x.conf", wait_for={"port": port})["pending"]
    assert len(pending) == 1
    assert f"127.0.0.1:{port}" in pending[0]


def test_unit_files_that_systemd_has_not_read_are_pending(
    tmp_path: Path, run_module: Run, systemctl: PretendedSystemctl
) -> None:
    """A new drop-in is in no list of files until systemd has read it."""
    configured(run_module, tmp_path / "x.conf")
    systemctl.began(time.time() + 1)
    systemctl.set(NeedDaemonReload="yes")
    assert configured(run_module, tmp_path / "x.conf")["pending"] == ["x.service: daemon-reload (its files changed)"]


def test_a_unit_that_is_left_as_it_is_only_has_its_files_read(
    tmp_path: Path, run_module: Run, systemctl: PretendedSystemctl
) -> None:
    """As PostgreSQL's, for a drop-in that acts from its next start on."""
    systemctl.began(time.time() - 10)
    dropin = tmp_path / "dropin.conf"
    systemctl.set(NeedDaemonReload="yes", ActiveState="inactive", DropInPaths=str(dropin))
    kept = {"state": "as_is", "enabled": None, "restart_on": []}
    waits = ["x.service: daemon-reload (its files changed)"]
    assert configured(run_module, dropin, **kept)["pending"] == waits
    report = run_module("service_units", units=[unit(dropin, **kept)], report_only=True)
    assert (report["pending"], report["interrupts"]) == (waits, False)
    assert run_module("service_units", check=True, units=[unit(dropin, **kept)])["changed"]
    assert systemctl.asked() == ""
    assert run_module("service_units", units=[unit(dropin, **kept)])["actions"] == waits
    assert systemctl.asked() == "daemon-reload\n"
    systemctl.set(NeedDaemonReload="no")
    assert configured(run_module, dropin, **kept)["pending"] == []
    assert not run_module("service_units", units=[unit(dropin, **kept)])["changed"]
    assert systemctl.asked() == "daemon-reload\n"


def test_a_unit_that_is_not_there_yet_is_pending(
    tmp_path: Path, run_module: Run, systemctl: PretendedSystemctl
) -> None:
    systemctl.set(LoadState="not-found", ActiveState="inactive")
    assert "not there yet" in configured(run_module, tmp_path / "x.conf")["pending"][0]


def test_a_state_that_cannot_be_read_fails(tmp_path: Path, run_module: Run, systemctl: PretendedSystemctl) -> None:
    (systemctl.folder / "systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    result = run_module("config_files", units=[unit(tmp_path / "x.conf")])
    assert result["failed"]
    assert "x.service: systemctl show failed with 1: no bus" in result["msg"]
