"""One keeper's part of the lock: real files, real processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from module_utils.devmentor.rollout import Lock, RolloutError

FREE = {"held": False, "mine": False, "run": "", "owner": "", "age_s": 0}


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(tmp_path / "rollout")


def at_once(count: int, work: Callable[[int], bool]) -> list[int]:
    """Which of so many processes, let go together, said True. One that fails otherwise fails the test."""
    gate, opener = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            status = 2
            try:
                os.close(opener)
                os.read(gate, 1)  # returns when the parent closes the other end
                status = 0 if work(number) else 1
            finally:
                os._exit(status)
        children.append(child)
    os.close(gate)
    os.close(opener)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(ends) <= {0, 1}
    return [number for number, end in enumerate(ends) if end == 0]


def test_it_is_had_by_one_and_let_go_by_that_one(lock: Lock, tmp_path: Path) -> None:
    assert lock.show() == FREE
    changed, seen = lock.acquire("r1", "anna@c1")
    assert changed
    assert seen == {"held": True, "mine": True, "run": "r1", "owner": "anna@c1", "age_s": 0}
    assert lock.acquire("r1", "anna@c1") == (False, seen), "what is mine stays as it is"

    changed, seen = lock.acquire("r2", "ben@c2")
    assert not changed
    assert (seen["held"], seen["mine"], seen["run"], seen["owner"]) == (True, False, "r1", "anna@c1")
    assert not lock.release("r2")[0]
    assert lock.show("r1")["mine"]

    assert lock.release("r1") == (True, FREE)
    assert lock.release("r1") == (False, FREE)
    assert list((tmp_path / "rollout").iterdir()) == []


def test_only_the_run_that_is_named_is_taken_over(lock: Lock) -> None:
    lock.acquire("r1", "anna@c1")
    assert not lock.acquire("r2", "ben@c2", take_over="r0")[0]
    assert lock.show()["run"] == "r1"
    assert lock.acquire("r2", "ben@c2", take_over="r1")[0]
    assert lock.show("r2")["mine"]
    assert not lock.release("r1")[0], "the run that has lost it does not remove it"
    assert lock.show("r2")["mine"]


def test_the_age_is_the_files_and_never_negative(lock: Lock, tmp_path: Path) -> None:
    lock.acquire("r1", "anna@c1")
    file = tmp_path / "rollout/lock.json"
    for shift, low, high in ((-3600, 3600, 3610), (+3600, 0, 0)):
        os.utime(file, (time.time() + shift,) * 2)
        assert low <= lock.show()["age_s"] <= high


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"run": ""}', b'{"run": 7}', b"\xff\xfe", b"null"])
def test_a_file_that_says_not_whose_it_is_is_nobodys_to_take(lock: Lock, tmp_path: Path, content: bytes) -> None:
    lock.acquire("r1", "anna@c1")
    file = tmp_path / "rollout/lock.json"
    file.write_bytes(content)
    actions: list[Callable[[], Any]] = [
        lock.show,
        lambda: lock.acquire("r2", "ben@c2"),
        lambda: lock.acquire("r2", "ben@c2", take_over="r1"),
        lambda: lock.release("r1"),
    ]
    for action in actions:
        with pytest.raises(RolloutError, match=rf"{file}.*Remedy: .*remove the file"):
            action()
    assert file.read_bytes() == content


def test_check_mode_writes_nothing(lock: Lock, tmp_path: Path) -> None:
    assert lock.acquire("r1", "anna@c1", check=True)[0]
    assert not (tmp_path / "rollout").exists()
    lock.acquire("r1", "anna@c1")
    assert lock.release("r1", check=True)[0]
    assert lock.show("r1")["mine"]


def test_a_file_is_private(lock: Lock, tmp_path: Path) -> None:
    lock.acquire("r1", "anna@c1")
    assert (tmp_path / "rollout").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "rollout/lock.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "../r1", "a/b", "r 1", "x" * 65])
def test_a_runs_name_is_a_plain_word(lock: Lock, name: str) -> None:
    with pytest.raises(RolloutError, match="run is"):
        lock.acquire(name, "anna@c1")


def test_of_several_at_once_one_has_it(lock: Lock) -> None:
    for _ in range(20):
        won = at_once(6, lambda number: lock.acquire(f"r{number}", "anna@c1")[0])
        assert len(won) == 1
        assert lock.show(f"r{won[0]}")["mine"]
        lock.release(f"r{won[0]}")


def test_of_several_that_take_it_over_at_once_one_has_it(lock: Lock) -> None:
    for turn in range(20):
        lock.acquire(f"gone{turn}", "anna@c1")
        won = at_once(6, lambda number, turn=turn: lock.acquire(f"r{number}", "ben@c2", take_over=f"gone{turn}")[0])
        assert len(won) == 1
        assert lock.show(f"r{won[0]}")["mine"]
        lock.release(f"r{won[0]}")
