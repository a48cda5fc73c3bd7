"""Checkpoints of the state: a process is killed at each of their steps, copies are damaged, files are replaced."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from state_world import SRC, Ledger, Postgres, Replica, delete, ingest, new_ledger

from devmentor.pbml.state import checkpoint, place
from devmentor.pbml.state.entry import Chunk, Entry, Live, chunks_sha256
from devmentor.pbml.state.file import StateFile
from devmentor.pbml.state.metrics import CHECKPOINTS


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
def ledger(postgres) -> Ledger:
    return new_ledger(postgres)


def entry(name: str, body: str) -> Entry:
    chunks = [Chunk(0, "", 0, len(body), body, b"\0\0\0\0")]
    return Entry("t", name, Live(1, 1, "document", None, None, chunks_sha256(chunks), chunks))


@pytest.fixture
def file(tmp_path) -> StateFile:
    made = StateFile(place.another(tmp_path))
    made.open()
    with made.writing():
        made.apply([entry("a", "text of a")])
    yield made
    made.close()


def damaged() -> float:
    return CHECKPOINTS.labels("damaged")._value.get()


def restored(directory: Path) -> dict[str, str]:
    """Digests of what a restart would begin from."""
    target = directory.parent / "restored.db"
    target.unlink(missing_ok=True)
    assert checkpoint.restore(directory, target) is not None
    opened = StateFile(target)
    opened.open()
    try:
        assert opened.db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return opened.digests()
    finally:
        opened.close()


def test_a_checkpoint_is_the_state_and_the_last_ones_are_kept(file, tmp_path, monkeypatch):
    now = iter(range(1000, 2000))
    monkeypatch.setattr("time.time", lambda: next(now))
    directory = tmp_path / "checkpoints"
    for number in range(5):
        with file.writing():
            file.apply([entry("b", f"text {number}")])
        checkpoint.write(file, directory, keep=3)
    assert len(checkpoint.listed(directory)) == 3
    assert len(list(directory.iterdir())) == 6
    assert restored(directory) == file.digests()


# Calls of the operating system that one checkpoint makes after another's is there, in their order; at each a process
# is killed before it is done.
KILLED = """
import os, pathlib, signal, sys
from devmentor.pbml.state import checkpoint, place
from devmentor.pbml.state.file import StateFile

left = int(sys.argv[3])

def counted(call):
    def instead(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return instead

file = StateFile(pathlib.Path(sys.argv[1]))
file.open()
StateFile.copy_to = counted(StateFile.copy_to)
os.fsync = counted(os.fsync)
pathlib.Path.replace = counted(pathlib.Path.replace)
pathlib.Path.unlink = counted(pathlib.Path.unlink)
pathlib.Path.write_text = counted(pathlib.Path.write_text)
checkpoint.write(file, pathlib.Path(sys.argv[2]), keep=1)
"""


def test_a_process_killed_at_any_step_leaves_a_whole_checkpoint(file, tmp_path):
    directory = tmp_path / "checkpoints"
    checkpoint.write(file, directory, keep=1)
    allowed = {json.dumps(file.digests())}
    for step in range(1, 30):
        with file.writing():
            file.apply([entry("a", f"text of step {step}")])
        allowed.add(json.dumps(file.digests()))
        done = subprocess.run(
            [sys.executable, "-c", KILLED, file.path, directory, str(step)],
            env={"PYTHONPATH": str(SRC)},
            timeout=60,
            check=False,
        )
        assert json.dumps(restored(directory)) in allowed
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert step > 8, "a step was not seen"
    assert len(list(directory.iterdir())) == 2, "the next checkpoint removes what killed ones left"
    assert restored(directory) == file.digests()


@pytest.mark.parametrize("what", ["flipped", "cut", "empty", "gone", "manifest", "manifest cut"])
def test_a_damaged_checkpoint_is_passed_over(file, tmp_path, what):
    directory = tmp_path / "checkpoints"
    checkpoint.write(file, directory, keep=3)
    older = file.digests()
    with file.writing():
        file.apply([entry("b", "text of b")])
    newest = checkpoint.write(file, directory, keep=3).path
    manifest = newest.with_suffix(".json")
    data = newest.read_bytes()
    match what:
        case "flipped":
            newest.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        case "cut":
            newest.write_bytes(data[: len(data) // 2])
        case "empty":
            newest.write_bytes(b"")
        case "gone":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sha256": "0" * 64}))
        case "manifest":
            manifest.write_text("{}")
        case "manifest cut":
            manifest.write_text(manifest.read_text()[:20])
    before = damaged()
    assert restored(directory) == older
    assert damaged() == before + 1


async def test_a_restart_is_from_the_file_a_damaged_one_from_a_checkpoint_and_the_tail(ledger, tmp_path):
    await ledger.do(ingest, "a", "text of a")
    await ledger.do(ingest, "old", "a secret text")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        await one.follower.copies.written()
        assert len(checkpoint.listed(tmp_path / "one" / place.CHECKPOINTS)) == 1
    await ledger.do(ingest, "b", "text of b")
    await ledger.do(delete, "old")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        assert one.follower.files.origin == "file"
        assert set(one.bodies()) == {"a", "b"}
        expected, path = one.file.digests(), one.path
    path.write_bytes(b"no database at all" * 1000)
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        assert one.follower.files.origin == "checkpoint"
        assert one.path != path
        assert not path.exists()
        assert one.file.digests() == expected
        assert set(one.bodies()) == {"a", "b"}


async def test_a_file_that_is_found_damaged_while_it_is_used_is_replaced(ledger, tmp_path):
    for number in range(50):
        await ledger.do(ingest, f"d{number}", f"text {number} " * 50)
    async with Replica(ledger.conninfo, tmp_path / "one", state_compare_s=0.001) as one:
        await one.settle()
        await one.follower.copies.written()
        expected = one.file.digests()
        one.file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        one.file.db.execute("PRAGMA cache_size = 0")
        path, size = one.path, one.path.stat().st_size
        with path.open("r+b") as raw:
            raw.seek(4096)
            raw.write(b"\xff" * (size - 4096))
        for _ in range(20):
            await one.follower.round()
        assert one.path != path
        assert one.follower.files.origin == "checkpoint"
        assert one.file.digests() == expected


async def test_with_no_whole_checkpoint_all_is_loaded(ledger, tmp_path):
    await ledger.do(ingest, "a", "text of a")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        await one.follower.copies.written()
        path = one.path
    path.write_bytes(b"")
    path.with_name("state.db-wal").unlink(missing_ok=True)
    path.write_bytes(b"x" * 8192)
    for found in (tmp_path / "one" / place.CHECKPOINTS).glob("*.db"):
        found.write_bytes(b"x")
    async with Replica(ledger.conninfo, tmp_path / "one") as one:
        await one.settle()
        assert one.follower.files.origin == "postgres"
        assert set(one.bodies()) == {"a"}


async def test_a_deleted_text_leaves_the_checkpoints_with_the_last_that_had_it(ledger, tmp_path):
    await ledger.do(ingest, "a", "a secret text")
    directory = tmp_path / "one" / place.CHECKPOINTS

    def secrets() -> list[bool]:
        return [b"a secret" in found.path.read_bytes() for found in checkpoint.listed(directory)]

    async with Replica(ledger.conninfo, tmp_path / "one", state_checkpoints=2) as one:
        await one.settle()
        await one.follower.copies.written()
        await ledger.do(delete, "a")
        await one.settle()
        seen = [secrets()]
        for _ in range(2):
            checkpoint.write(one.file, directory, keep=2)
            seen.append(secrets())
            assert not any(b"a secret" in beside.read_bytes() for beside in one.path.parent.iterdir())
        assert seen == [[True], [True, False], [False, False]]
