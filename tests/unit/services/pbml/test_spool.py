"""The spool's file and its bounds, on a real disk; fsync failures are pretended and say so in their names."""

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from spool_postgres import SRC

from devmentor.pbml.spool.entry import Entry, RecordDamaged, decode, digest, lane_of, turn_name
from devmentor.pbml.spool.spool import Spool
from devmentor.pbml.spool.store import Reader, SpoolFull, SpoolLocked, SpoolOutcomeUnknown, SpoolUnusable, Store
from devmentor.pbml.store.idempotency import KeyReused

MIB = 1024 * 1024


def draft(text: str = "text", name: str = "d", key: str | None = None, sha: str = "00") -> Entry:
    return Entry("one", "t", "document", name, text, key=key, request_sha256=sha)


@asynccontextmanager
async def opened(directory, *, max_bytes=64 * MIB, min_free_bytes=0, clock_us=lambda: 1_000_000):
    spool = Spool(directory, max_bytes=max_bytes, min_free_bytes=min_free_bytes, clock_us=clock_us)
    await spool.open()
    try:
        yield spool
    finally:
        await spool.close()


def texts(directory) -> list[str]:
    with Reader(directory) as reader:
        return [decode(stored.record, stored.checksum).content for stored in reader.all()]


def test_a_record_that_changed_is_not_taken_for_what_was_written():
    record = draft("naïve \U0001f600").encode()
    assert decode(record, digest(record)).content == "naïve \U0001f600"
    with pytest.raises(RecordDamaged):
        decode(record.replace(b"text", b"tex7").replace(b"na", b"ma"), digest(record))
    with pytest.raises(RecordDamaged):
        decode(b"{}", digest(b"{}"))


def test_a_turn_s_name_says_whose_order_it_keeps():
    assert lane_of("t", turn_name("c")) == ("turn", "t", "c")
    assert lane_of("t", "a/b/c") == ("document", "t", "a/b/c")


async def test_entries_are_there_after_a_restart_in_their_order_with_keys_and_lanes(tmp_path):
    async with opened(tmp_path) as spool:
        for n in range(5):
            await spool.append(draft(f"text {n}", f"d{n % 2}", key=f"k{n}"))
    async with opened(tmp_path, clock_us=lambda: 7) as spool:
        assert spool.waiting == 5
        assert spool.usable
        kept = spool.next(64, MIB)
        assert [(await spool.read(one)).content for one in kept] == [f"text {n}" for n in range(5)]
        assert spool.holds(("document", "t", "d0"))
        assert not spool.holds(("document", "t", "d2"))
        assert spool.known("t", "k3", "00") is kept[3]
        with pytest.raises(KeyReused):
            spool.known("t", "k3", "01")
        newest = await spool.append(draft("later"))
        assert newest.accepted_us > kept[-1].accepted_us, "whatever the clock says now"
        for one in kept:
            spool.release(one)
        assert not spool.holds(("document", "t", "d0"))
        assert spool.known("t", "k3", "00") is None
    assert texts(tmp_path) == ["later"]


async def test_later_writes_of_what_waits_go_through_the_spool_and_all_while_postgresql_is_away(tmp_path):
    lane, other = ("document", "t", "d"), ("document", "t", "e")
    async with opened(tmp_path) as spool:
        kept = await spool.append(draft())
        assert (spool.must_take(lane), spool.must_take(other)) == (True, False)
        spool.away = True
        assert spool.must_take(other)
        spool.release(kept)
        assert not spool.must_take(lane), "with nothing to replay nobody would find out that it is back"


async def test_what_is_accepted_after_a_commit_is_later_than_it_whatever_the_clocks_say(tmp_path):
    async with opened(tmp_path) as spool:
        spool.saw(datetime(2030, 1, 1, tzinfo=UTC))
        kept = await spool.append(draft())
        assert (await spool.read(kept)).accepted_at > datetime(2030, 1, 1, tzinfo=UTC)


async def test_writes_that_come_together_share_fsyncs(tmp_path):
    async with opened(tmp_path) as spool:
        commits = 0
        commit = spool._store.commit

        def counted(*arguments):
            nonlocal commits
            commits += 1
            commit(*arguments)

        spool._store.commit = counted
        await asyncio.gather(*(spool.append(draft(f"{n}")) for n in range(500)))
        assert commits < 50
    assert texts(tmp_path) == [f"{n}" for n in range(500)]


async def test_a_full_spool_refuses_and_takes_again_when_there_is_room(tmp_path):
    async with opened(tmp_path, max_bytes=4096) as spool:
        first = await spool.append(draft("x" * 2000))
        with pytest.raises(SpoolFull):
            await spool.append(draft("x" * 2000))
        assert spool.waiting == 1
        spool.release(first)
        await spool.append(draft("small"))  # its fsync is after the removal
        await spool.append(draft("x" * 2000))


async def test_what_must_stay_free_on_the_disk_is_left(tmp_path):
    async with opened(tmp_path, min_free_bytes=shutil.disk_usage(tmp_path).free * 2) as spool:
        with pytest.raises(SpoolFull, match="free on the disk"):
            await spool.append(draft())


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False, capture_output=True)
    assert mounted.returncode == 0, mounted.stderr
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_a_disk_that_is_full_refuses_keeps_what_was_acknowledged_and_goes_on(small_disk):
    async with opened(small_disk) as spool:
        kept, refused = [], 0
        for n in range(40):
            try:
                kept.append(await spool.append(draft(f"{n} " + "x" * 100_000)))
            except SpoolFull:
                refused += 1
        assert kept
        assert refused
        assert spool.usable, spool.broken
        acknowledged = [one.entry_id for one in kept]
        with Reader(small_disk) as reader:
            assert [stored.entry_id for stored in reader.all()] == acknowledged
    async with opened(small_disk) as spool:
        # Its log does not fit into the file: it is read, and nothing is taken.
        assert spool.usable, spool.broken
        assert spool.waiting == len(acknowledged)
        with pytest.raises(SpoolFull):
            await spool.append(draft("x" * 100_000))
        for one in spool.next(64, 64 * MIB):
            assert (await spool.read(one)).content.startswith(f"{acknowledged.index(one.entry_id)} ")
            spool.release(one)
        for _ in range(500):
            if not spool.size:
                break
            await asyncio.sleep(0.01)
        await spool.append(draft("room again"))
    assert texts(small_disk) == ["room again"]


async def test_a_pretended_fsync_failure_makes_it_unusable_until_a_restart(tmp_path, monkeypatch):
    async with opened(tmp_path) as spool:
        await spool.append(draft("before", key="k"))

        def fails(_appends, _removals):
            raise SpoolOutcomeUnknown("disk I/O error")

        monkeypatch.setattr(spool._store, "commit", fails)
        with pytest.raises(SpoolOutcomeUnknown):
            await spool.append(draft("during"))
        monkeypatch.undo()
        with pytest.raises(SpoolUnusable):
            await spool.append(draft("after"))
        assert not spool.usable
        assert spool.waiting == 1
        assert (await spool.read(spool.next(1, MIB)[0])).content == "before", "what was acknowledged is still replayed"
    async with opened(tmp_path) as spool:
        assert spool.usable
        await spool.append(draft("after"))
    assert texts(tmp_path) == ["before", "after"]


@pytest.mark.parametrize("name", ["SQLITE_IOERR_FSYNC", "SQLITE_FULL"])
def test_pretended_errors_of_sqlite_are_told_apart(tmp_path, name):
    store = Store(tmp_path)

    class Connection:
        in_transaction = False

        def execute(self, _statement):
            error = sqlite3.OperationalError("disk")
            error.sqlite_errorcode = getattr(sqlite3, name)
            raise error

    real, store._db = store._db, Connection()
    expected = SpoolFull if name == "SQLITE_FULL" else SpoolOutcomeUnknown
    with pytest.raises(expected):
        store.commit([("a", b"a")], [])
    store._db = real
    store.close()


def test_a_torn_tail_is_cut_and_only_what_was_not_acknowledged_is_lost(tmp_path):
    """The log is cut at every kind of place, as a power cut leaves it."""
    source = tmp_path / "source"
    source.mkdir()
    store = Store(source)
    ends = []
    for n in range(6):
        record = draft(f"{n} " + "x" * 9000).encode()
        store.commit([(f"{n:032x}", record)], [])
        ends.append((source / "spool.sqlite-wal").stat().st_size)
    for number, cut in enumerate({*ends, *(end - 1 for end in ends), *(end - 5000 for end in ends), ends[2] + 100}):
        copy = tmp_path / f"copy{number}"
        copy.mkdir()
        shutil.copy(source / "spool.sqlite", copy)
        log = (source / "spool.sqlite-wal").read_bytes()
        # What is beyond was never written, or is what the disk held before.
        (copy / "spool.sqlite-wal").write_bytes(log[:cut] + (b"\xa5" * 3000 if number % 2 else b""))
        whole = sum(end <= cut for end in ends)
        recovered = Store(copy)
        assert [stored.entry_id for stored in recovered.all()] == [f"{n:032x}" for n in range(whole)]
        recovered.commit([("f" * 32, draft("later").encode())], [])
        recovered.close()
        assert texts(copy)[-1] == "later"
    store.close()


async def test_a_damaged_record_is_set_aside_and_the_others_are_there(tmp_path):
    async with opened(tmp_path) as spool:
        for n in range(3):
            await spool.append(draft(f"text {n}"))
    with sqlite3.connect(tmp_path / "spool.sqlite") as db:
        db.execute("UPDATE entries SET record = CAST(replace(record, 'text 1', 'tex! 1') AS BLOB) WHERE position = 2")
    async with opened(tmp_path) as spool:
        assert (spool.waiting, spool.parked) == (2, 1)
        assert [(await spool.read(one)).content for one in spool.next(9, MIB)] == ["text 0", "text 2"]


async def test_a_file_that_is_no_spool_leaves_one_that_takes_nothing(tmp_path):
    (tmp_path / "spool.sqlite").write_bytes(b"not a database" * 1000)
    async with opened(tmp_path) as spool:
        assert not spool.usable
        assert "not a database" in spool.broken
        with pytest.raises(SpoolUnusable):
            await spool.append(draft())


def test_one_process_has_it(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(SpoolLocked, match=r"stop pbml\.service"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


_WRITER = """
import asyncio, sys
from pathlib import Path
from devmentor.pbml.spool.entry import Entry
from devmentor.pbml.spool.spool import Spool
import time
async def main():
    spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30, min_free_bytes=0, clock_us=lambda: time.time_ns() // 1000)
    await spool.open()
    async def one(lane):
        n = 0
        while True:
            await spool.append(Entry("one", "t", "document", f"d{lane}", f"{sys.argv[2]}/{lane}/{n}"))
            print(f"{sys.argv[2]}/{lane}/{n}", flush=True)
            n += 1
    await asyncio.gather(*(one(lane) for lane in range(16)))
asyncio.run(main())
"""


def test_nothing_that_was_acknowledged_is_lost_to_kills(tmp_path):
    """Thousands of small entries, the writer killed again and again at moments of no choice."""
    said: list[str] = []
    for turn in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(turn)],
            env={**os.environ, "PYTHONPATH": str(SRC)},
            stdout=subprocess.PIPE,
            text=True,
        )
        kill = threading.Timer(2.0, lambda one=writer: one.send_signal(signal.SIGKILL))
        said += [writer.stdout.readline().strip()]
        kill.start()
        said += [line.strip() for line in writer.stdout if line.endswith("\n")]
        writer.wait()
    found = texts(tmp_path)
    assert len(said) > 2000
    assert len(set(found)) == len(found)
    assert set(said) <= set(found)
    for lane in range(16):
        for turn in range(6):
            numbers = [int(t.split("/")[2]) for t in found if t.startswith(f"{turn}/{lane}/")]
            assert numbers == sorted(numbers)


def test_a_file_size_limit_refuses_what_does_not_fit(tmp_path):
    """RLIMIT_FSIZE in a process of its own: the kernel refuses the write itself."""
    program = (
        "import sys, signal\n"
        "from pathlib import Path\n"
        "from devmentor.pbml.spool.store import Store, SpoolUnusable, SpoolFull\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = Store(Path(sys.argv[1]))\n"
        "store.commit([('a', b'small')], [])\n"
        "try:\n    store.commit([('b', b'x' * 500000)], [])\n"
        "except (SpoolUnusable, SpoolFull) as error:\n    print(type(error).__name__)\n"
    )
    limit = 200_000
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() in ("SpoolOutcomeUnknown", "SpoolFull"), done.stderr
    store = Store(tmp_path)
    assert [stored.entry_id for stored in store.all()] == ["a"]
    store.close()


def test_at_the_start_the_log_is_written_into_the_file_and_emptied(tmp_path):
    """Nothing that is acknowledged afterwards leans on a page of a log whose fsync failed before."""
    first = Store(tmp_path)
    first.commit([("a", b"x" * 5000)], [])
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("spool.sqlite", "spool.sqlite-wal"):
        shutil.copy(tmp_path / name, copy)
    first.close()
    assert (copy / "spool.sqlite-wal").stat().st_size > 0
    store = Store(copy)
    assert (copy / "spool.sqlite-wal").stat().st_size == 0
    assert [stored.entry_id for stored in store.all()] == ["a"]
    store.close()
