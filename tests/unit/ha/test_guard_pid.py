"""A process number left behind by a power cut."""

import os
import subprocess
import sys
import time
from pathlib import Path

from devmentor.pgagent.guard import _clear_stale_pid


def test_a_number_that_another_program_has_is_removed(tmp_path):
    path = tmp_path / "postmaster.pid"
    path.write_text(f"{os.getpid()}\n/data\n")
    _clear_stale_pid(path)
    assert not path.exists()


def test_a_number_that_nobody_has_is_removed(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    path = tmp_path / "postmaster.pid"
    path.write_text(f"{done.pid}\n")
    _clear_stale_pid(path)
    assert not path.exists()


def test_a_postmaster_is_left_alone(tmp_path):
    program = tmp_path / "postgres"
    program.symlink_to("/bin/sleep")
    running = subprocess.Popen([str(program), "60"])
    path = tmp_path / "postmaster.pid"
    path.write_text(f"{running.pid}\n")
    try:
        while Path(f"/proc/{running.pid}/comm").read_text().strip() != "postgres":
            time.sleep(0.01)  # not executed yet
        _clear_stale_pid(path)
        assert path.exists()
    finally:
        running.kill()
        running.wait()


def test_no_file_and_no_number_are_nothing(tmp_path):
    _clear_stale_pid(tmp_path / "postmaster.pid")
    (tmp_path / "postmaster.pid").write_text("\n")
    _clear_stale_pid(tmp_path / "postmaster.pid")
