"""Listening to an emulator and killing it, with a program in its place."""

import os
import time

import pytest

from lab.errors import CommandError, TimeoutExpired
from tests.vm.emulator import Emulator
from tests.vm.image import Image


@pytest.fixture
def emulator(tmp_path, monkeypatch):
    """A function: what the program does -> the emulator."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(script):
        program = tmp_path / "qemu-system-x86_64"
        program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho \"$@\" > {tmp_path}/words\n{script}\n")
        program.chmod(0o755)
        (tmp_path / "console").write_text("last words\n")
        disks = {"promise": tmp_path / "promise.img"}
        return Emulator(Image(tmp_path), tmp_path / "initramfs", disks, "write", tmp_path / "console")

    return make


def alive(tmp_path):
    return os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")


def test_messages_in_order_and_nothing_left(emulator, tmp_path):
    with emulator("""printf '{"a": 1}\\r\\n\\r\\n{"a": 2}\\r\\n{"a"'; exec sleep 1000""") as guest:
        assert guest.next(10, "one") == {"a": 1}
        assert guest.told(10) == {"a": 2}
        assert guest.told(0.05) is None
        assert alive(tmp_path)
    assert not alive(tmp_path)
    words = (tmp_path / "words").read_text()
    assert f"id=promise,format=raw,cache=unsafe,file={tmp_path}/promise.img -device" in words
    assert "file=" + str(tmp_path / "root.img") + ",readonly=on" in words


def test_what_was_told_before_the_kill_is_not_forgotten(emulator, tmp_path):
    with emulator("""printf '{"a": 1}\\n{"a": 2}\\n{"a": 3'; : > "$(dirname "$0")/said"; exec sleep 1000""") as guest:
        end = time.monotonic() + 10
        while not (tmp_path / "said").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert guest.kill() == [{"a": 1}, {"a": 2}]
        assert not alive(tmp_path)


def test_silence_has_an_end(emulator):
    with emulator("exec sleep 1000") as guest, pytest.raises(TimeoutExpired, match="that it has booted within 0 s"):
        guest.next(0.1, "that it has booted")


def test_a_machine_that_ends_by_itself(emulator):
    with emulator("exit 1") as guest, pytest.raises(CommandError, match="ended by itself: last words"):
        guest.next(10, "anything")


def test_a_guest_that_fails_says_why(emulator):
    failing = emulator("""printf '{"failed": "a disk is missing"}\\n'; exec sleep 1000""")
    with failing as guest, pytest.raises(CommandError, match="a disk is missing"):
        guest.next(10, "anything")
