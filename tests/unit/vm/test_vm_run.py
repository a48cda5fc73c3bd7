"""The command, without a machine to emulate."""

import pytest

from lab import machine
from tests.vm import run
from tests.vm.judge import CONTROLS, SUBJECTS


def test_without_an_emulator_one_message_names_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "require_root", lambda: None)
    for program in set(run.PROGRAMS) - {"qemu-system-x86_64"}:
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr(machine, "KEYRING", tmp_path / "mke2fs")
    assert run.main([]) == 1
    said = capsys.readouterr().err
    assert said == (
        "vm-postgres: this machine lacks the Debian package qemu-system-x86\n"
        "  remedy: make vm-postgres installs it (or: apt-get install qemu-system-x86)\n"
    )


@pytest.mark.parametrize(
    ("lost", "problems", "status", "said"),
    [
        (dict.fromkeys(CONTROLS, 1), [], 0, ""),
        (dict.fromkeys(CONTROLS, 1), ["promise: 2 acknowledged, 1 found: 1 lost"], 1, ""),
        (dict.fromkeys(CONTROLS, 1) | {"no-fsync": 0}, [], 1, "no-fsync lost nothing in 1 rounds"),
    ],
)
def test_the_exit_status(lost, problems, status, said, capsys):
    entry = {"lost": dict.fromkeys(SUBJECTS, 0) | lost, "problems": problems}
    assert run.verdict([entry]) == status
    assert said in capsys.readouterr().err
