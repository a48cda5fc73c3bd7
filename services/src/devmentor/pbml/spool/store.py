"""The spool's file: SQLite, whose log is a checksummed journal that cuts its own torn end. Used by one thread.

An append is durable when `commit` returns: synchronous=FULL makes SQLite fsync the log before it. Decision 0058.
"""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from devmentor.pbml.spool.entry import digest

_FILE = "spool.sqlite"
_LOCK = "spool.lock"
_BUSY_MS = 10_000
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG)

_TABLE = """
    CREATE TABLE IF NOT EXISTS entries (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        entry_id TEXT NOT NULL UNIQUE,
        record BLOB NOT NULL,
        sha256 BLOB NOT NULL,
        parked TEXT
    )
"""


class SpoolFull(Exception):
    """No room: nothing of the batch was kept."""


class SpoolUnusable(Exception):
    """The disk or the file failed: what was given is not acknowledged, and nothing will be until a restart."""


class SpoolOutcomeUnknown(SpoolUnusable):
    """The fsync of this very batch failed: a restart may find it or not."""


class SpoolLocked(SpoolUnusable):
    """Another process has it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record where it lies. `parked`: why it is not replayed, None where it is to be."""

    position: int
    entry_id: str
    record: bytes
    checksum: bytes
    parked: str | None


class Store:
    """Owns the directory: a lock file keeps any other process from writing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._lock = _lock(directory / _LOCK)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES) and directory.is_dir() and os.access(directory, os.W_OK):
                raise SpoolLocked(f"{directory} is in use by another process; stop pbml.service first") from error
            raise SpoolUnusable(f"{directory}: {error}") from error
        self._settled = False
        try:
            self._db = self._connect()
            try:
                self._prepare()
            except sqlite3.Error as error:
                if not _is_full(error):
                    raise
                # No room even for the log's index beside it: alone, SQLite keeps that in memory.
                self._db.close()
                self._db = self._connect()
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._prepare()
        except sqlite3.Error as error:
            os.close(self._lock)
            raise SpoolUnusable(f"{directory / _FILE}: {error}") from error
        except SpoolUnusable:
            os.close(self._lock)
            raise

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._directory / _FILE, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        """Recover, prove, and start from an empty log, where the disk has room for that."""
        self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        if not self._db.execute("PRAGMA page_count").fetchone()[0]:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file only: it writes
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA journal_size_limit = 0")
        self._db.execute(_TABLE)
        try:
            self._settle()
        except sqlite3.Error as error:
            if not _is_full(error):
                raise
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise SpoolUnusable(f"{self._directory / _FILE}: {found}")
        _sync_directory(self._directory)

    def _settle(self) -> None:
        """Once, before anything new is acknowledged: every page of the log that was found goes into the file.

        After a failed fsync the kernel may hold a page as clean that is not on the disk, and SQLite reads it from the
        cache after a restart: records after it would be lost with it in a power cut. Checkpointing first writes every
        page anew and fsyncs it, so nothing that is acknowledged from here on leans on such a page. On a full disk that
        can not be: what is there is replayed, and nothing is taken.
        """
        if self._settled:
            return
        busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise SpoolUnusable(f"{self._directory / _FILE}: a reader holds the log for {_BUSY_MS / 1000:g} s; end it")
        self._settled = True

    def commit(self, appends: Sequence[tuple[str, bytes]], removals: Sequence[str]) -> None:
        """Keep (entry id, record) and forget ids, in one fsync. Raises SpoolFull or SpoolUnusable."""
        try:
            if appends:
                self._settle()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("DELETE FROM entries WHERE entry_id = ?", [(name,) for name in removals])
                self._db.executemany(
                    "INSERT INTO entries (entry_id, record, sha256) VALUES (?, ?, ?)",
                    [(name, record, digest(record)) for name, record in appends],
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            if _is_full(error):
                raise SpoolFull(f"{self._directory}: {error}") from error
            raise SpoolOutcomeUnknown(f"{self._directory}: {error}") from error

    def park(self, entry_id: str, reason: str | None) -> None:
        """Set aside, or take up again. Raises SpoolFull or SpoolUnusable."""
        try:
            self._db.execute("UPDATE entries SET parked = ? WHERE entry_id = ?", (reason, entry_id))
        except sqlite3.Error as error:
            if _is_full(error):
                raise SpoolFull(f"{self._directory}: {error}") from error
            raise SpoolUnusable(f"{self._directory}: {error}") from error

    def shrink(self) -> None:
        """Give an emptied file's pages back to the disk."""
        try:
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise SpoolUnusable(f"{self._directory}: {error}") from error

    def start_over(self) -> None:
        """Begin with an empty file, where all that is in this one is in PostgreSQL and the disk has no room to say so.

        The log first: a crash in between leaves entries that are replayed to no effect.
        """
        try:
            self._db.close()
            for name in (f"{_FILE}-wal", f"{_FILE}-shm", _FILE):
                (self._directory / name).unlink(missing_ok=True)
            _sync_directory(self._directory)
            self._settled = False
            self._db = self._connect()
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise SpoolUnusable(f"{self._directory}: {error}") from error

    def read(self, entry_id: str) -> Stored | None:
        """One record."""
        row = self._db.execute(f"{_SELECT} WHERE entry_id = ?", (entry_id,)).fetchone()
        return Stored(*row) if row else None

    def all(self) -> Iterator[Stored]:
        """Every record, in the order of acknowledgement."""
        return (Stored(*row) for row in self._db.execute(f"{_SELECT} ORDER BY position"))

    def close(self) -> None:
        """What is in it stays."""
        self._db.close()
        os.close(self._lock)


_SELECT = "SELECT position, entry_id, record, sha256, parked FROM entries"


class Reader:
    """Looks at a spool that a service may be using. An empty one where there is no file."""

    def __init__(self, directory: Path) -> None:
        path = directory / _FILE
        self._db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) if path.exists() else None
        if self._db is not None:
            self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._db is not None:
            self._db.close()

    def all(self) -> Iterator[Stored]:
        """Every record, in the order of acknowledgement. Raises SpoolUnusable."""
        if self._db is None:
            return
        try:
            for row in self._db.execute(f"{_SELECT} ORDER BY position"):
                yield Stored(*row)
        except sqlite3.Error as error:
            raise SpoolUnusable(str(error)) from error


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in _FULL


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
