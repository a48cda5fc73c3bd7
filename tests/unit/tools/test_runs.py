"""A run that cannot be read back is an error, never a run that changed nothing."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tools import runs

RECAP = """
TASK [base : Packages] ***
ok: [lab1]

PLAY RECAP *********
lab1                       : ok=12   changed=0    unreachable=0    failed=0    skipped=3
lab2                       : ok=12   changed=2    unreachable=0    failed=0    skipped=3
"""


def done(output: str) -> runs.Run:
    return runs.Run(["ansible-playbook", "site.yml"], 0, output, 1.0)


def test_the_recap_is_read_and_hosts_that_changed_are_named() -> None:
    assert set(done(RECAP).recap()) == {"lab1", "lab2"}
    assert done(RECAP).changed() == {"lab2": 2}


@pytest.mark.parametrize(
    "output",
    [
        "",
        "PLAY RECAP ***\n",
        "lab1 : ok=1 changed=0\n",
        "PLAY RECAP ***\n\x1b[0;33mlab1\x1b[0m   : \x1b[0;32mok=1  \x1b[0m \x1b[0;33mchanged=1  \x1b[0m\n",
    ],
)
def test_a_recap_without_a_host_is_an_error_and_not_no_change(output: str) -> None:
    with pytest.raises(runs.RunError, match="without a recap"):
        done(output).changed()


def test_inherited_colours_do_not_reach_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_FORCE_COLOR", "1")
    monkeypatch.setenv("ANSIBLE_NOCOLOR", "0")
    shown = runs.run("env", timeout=60).require().output.splitlines()
    assert "ANSIBLE_NOCOLOR=1" in shown
    assert not [line for line in shown if line.startswith("ANSIBLE_FORCE_COLOR")]


# A shell that says one line, then nothing, and has a child of its own; both write their process id to files.
SILENT = 'echo begun; sleep 300 & echo $! > "$0/child"; echo $$ > "$0/shell"; wait'


def gone(folder: Path) -> bool:
    """Both processes have ended; one whose parent did not wait for it is a zombie until init does."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        stats = [Path("/proc", (folder / name).read_text().strip(), "stat") for name in ("child", "shell")]
        if all(not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z" for stat in stats):
            return True
        time.sleep(0.05)
    return False


def test_a_silent_command_is_killed_at_its_timeout_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(runs.RunError, match=r"(?s)^sh -c .* ran past 1 s:\nbegun$"):
        runs.run("sh", "-c", SILENT, str(tmp_path), timeout=1)
    assert time.monotonic() - began < 10
    assert gone(tmp_path)


@pytest.mark.parametrize(
    "script",
    ["while :; do echo more; done", "exec >&- 2>&-; sleep 300", "sleep 300 & echo begun"],
    ids=["never-silent", "closes-its-output", "its-child-holds-the-output"],
)
def test_every_way_past_the_timeout_is_a_run_error(script: str) -> None:
    began = time.monotonic()
    with pytest.raises(runs.RunError, match="ran past 1 s"):
        runs.run("sh", "-c", script, timeout=1)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("deaf", ["", "trap '' INT; "], ids=["ends-itself", "has-to-be-killed"])
def test_an_interrupt_ends_the_command_and_its_children(
    deaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "INTERRUPT_SECONDS", 1.0)

    def interrupt() -> None:
        while not (tmp_path / "shell").exists() or not (tmp_path / "shell").read_text():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A shell starts what it runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runs.run("sh", "-c", deaf + SILENT, str(tmp_path), timeout=30)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert gone(tmp_path)


def test_the_output_is_whole_whatever_its_pieces() -> None:
    script = r"""
import os, time
for each in "zwölf€\n".encode() + b"\xff":
    os.write(1, bytes([each]))
    time.sleep(0.01)
"""
    assert runs.run(sys.executable, "-c", script, timeout=60).require().output == "zwölf€\n\ufffd"
