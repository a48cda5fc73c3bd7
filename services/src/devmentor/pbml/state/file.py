"""The state's file: SQLite, written by one process and read by others. Blocking calls; for a thread.

Every change of the state is one transaction with the snapshot that it stands for, so that a file is at all times some
state of the ledger, also after a crash. WAL: readers are not held up, and what a power failure takes is followed again.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from devmentor.pbml.state.entry import (
    NOTHING,
    Chunk,
    Entry,
    Key,
    Known,
    Live,
    Pinned,
    Said,
    Waiting,
    chunks_sha256,
    exchanged,
    item,
)

FORMAT = 1
"""Another number is another set of tables: the file is made again."""

_TABLES = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tenants (tenant TEXT PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, document_id TEXT NOT NULL, item BLOB NOT NULL,
        version INTEGER, seq INTEGER, kind TEXT, conversation_id TEXT, title TEXT, chunks_sha256 BLOB,
        UNIQUE (tenant, document_id));
    CREATE TABLE chunks (
        id INTEGER PRIMARY KEY, document INTEGER NOT NULL, chunk INTEGER NOT NULL, section TEXT NOT NULL,
        start_char INTEGER NOT NULL, end_char INTEGER NOT NULL, vector BLOB NOT NULL, UNIQUE (document, chunk));
    CREATE VIRTUAL TABLE texts USING fts5(scope, body, tokenize = 'unicode61 remove_diacritics 0');
    CREATE TABLE waiting (
        tenant TEXT NOT NULL, seq INTEGER NOT NULL, document INTEGER NOT NULL, version INTEGER NOT NULL,
        kind TEXT NOT NULL, conversation_id TEXT, title TEXT, content TEXT, failed INTEGER NOT NULL,
        PRIMARY KEY (tenant, seq)) WITHOUT ROWID;
    CREATE INDEX waiting_document ON waiting (document);
    CREATE TABLE turns (
        tenant TEXT NOT NULL, conversation_id TEXT NOT NULL, seq INTEGER NOT NULL, document INTEGER NOT NULL,
        role TEXT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (tenant, conversation_id, seq)) WITHOUT ROWID;
    CREATE INDEX turns_document ON turns (document);
    CREATE TABLE pins (
        tenant TEXT NOT NULL, conversation_id TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL,
        updated_at TEXT NOT NULL, PRIMARY KEY (tenant, conversation_id, name)) WITHOUT ROWID;
    CREATE TABLE seqs (seq INTEGER PRIMARY KEY, tenant TEXT NOT NULL);
"""


class StateUnreadable(Exception):
    """The file is no state of this release: make another."""


def scope(tenant: str, *, document_id: str | None = None, conversation_id: str | None = None) -> str:
    """A word that only chunks of this document, of this conversation, or of the tenant's documents have."""
    kind, name = ("c", conversation_id) if conversation_id is not None else ("d", document_id)
    kind = "t" if name is None else kind
    return kind + hashlib.sha256(f"{kind}\n{tenant}\n{name or ''}".encode()).hexdigest()[:32]


class StateFile:
    """The only writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open it, or make an empty one. Raises StateUnreadable where what is there can not be used."""
        try:
            self._db = db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA secure_delete = ON")  # what was deleted leaves the file, not only the index of it
            db.execute("PRAGMA cache_size = -65536")
            db.execute("PRAGMA busy_timeout = 5000")
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
            elif found != FORMAT:
                raise StateUnreadable(f"{self.path}: format {found}, this release has {FORMAT}")
            self.meta("snapshot")
        except sqlite3.DatabaseError as error:
            self.close()
            raise StateUnreadable(f"{self.path}: {error}") from error
        except StateUnreadable:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def db(self) -> sqlite3.Connection:
        """The connection."""
        if self._db is None:
            raise StateUnreadable(f"{self.path} is not open")
        return self._db

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def meta(self, name: str) -> str | None:
        """A note."""
        row = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row is not None else None

    def note(self, **values: str | None) -> None:
        """Write notes; None removes one."""
        for name, value in values.items():
            if value is None:
                self.db.execute("DELETE FROM meta WHERE name = ?", (name,))
            else:
                self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def known(self, keys: Iterable[Key]) -> Known:
        """The live versions that are here."""
        found: Known = {}
        for key in keys:
            row = self.db.execute(
                "SELECT version, chunks_sha256 FROM documents"
                " WHERE tenant = ? AND document_id = ? AND version IS NOT NULL",
                key,
            ).fetchone()
            if row is not None:
                found[key] = (row[0], row[1])
        return found

    def apply(self, entries: Iterable[Entry], *, rewrite: bool = False) -> int:
        """Make the documents what the entries say; how many differed. Inside `writing`.

        With `rewrite` they are written whatever is here: for what was found to be damaged.
        """
        return sum(self._apply(entry, rewrite) for entry in entries)

    def _apply(self, entry: Entry, rewrite: bool) -> bool:
        row = self.db.execute(
            "SELECT id, item, version, chunks_sha256 FROM documents WHERE tenant = ? AND document_id = ?", entry.key
        ).fetchone()
        new = item(entry)
        if not rewrite and (row[1] if row is not None else None) == new:
            return False
        live = entry.live
        same = not rewrite and live is not None and row is not None and row[2:] == (live.version, live.chunks_sha256)
        if row is not None:
            self._forget(row[0], keep_chunks=same)
        if new is not None:
            self._write(row[0] if row is not None else None, entry, new, write_chunks=not same)
        before = self.db.execute("SELECT digest FROM tenants WHERE tenant = ?", (entry.tenant,)).fetchone()
        digest = exchanged(before[0] if before is not None else NOTHING, row[1] if row is not None else None, new)
        self.db.execute("INSERT OR REPLACE INTO tenants VALUES (?, ?)", (entry.tenant, digest))
        return True

    def _forget(self, document: int, *, keep_chunks: bool) -> None:
        if not keep_chunks:
            self.db.execute("DELETE FROM texts WHERE rowid IN (SELECT id FROM chunks WHERE document = ?)", (document,))
            self.db.execute("DELETE FROM chunks WHERE document = ?", (document,))
        self.db.execute("DELETE FROM waiting WHERE document = ?", (document,))
        self.db.execute("DELETE FROM turns WHERE document = ?", (document,))
        self.db.execute("DELETE FROM documents WHERE id = ?", (document,))

    def _write(self, document: int | None, entry: Entry, new: bytes, *, write_chunks: bool) -> None:
        live = entry.live
        place = (live.version, live.seq, live.kind, live.conversation_id, live.title) if live else (None,) * 5
        cursor = self.db.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (document, *entry.key, new, *place, live.chunks_sha256 if live else None),
        )
        document = cursor.lastrowid
        for w in entry.waiting:
            self.db.execute(
                "INSERT INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (entry.tenant, w.seq, document, w.version, w.kind, w.conversation_id, w.title, w.content, w.failed),
            )
        if (said := entry.said) is not None:
            self.db.execute(
                "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?)",
                (entry.tenant, said.conversation_id, said.seq, document, said.role, said.content),
            )
        if live is None or not write_chunks:
            return
        if live.chunks is None:
            raise StateUnreadable(f"{self.path}: chunks of {entry.document_id} are gone that were here before")
        scopes = " ".join(
            [scope(entry.tenant, conversation_id=live.conversation_id)]
            if live.conversation_id is not None
            else [scope(entry.tenant), scope(entry.tenant, document_id=entry.document_id)]
        )
        for k in live.chunks:
            cursor = self.db.execute(
                "INSERT INTO chunks VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                (document, k.chunk, k.section, k.start, k.end, k.vector),
            )
            self.db.execute(
                "INSERT INTO texts (rowid, scope, body) VALUES (?, ?, ?)", (cursor.lastrowid, scopes, k.body)
            )

    def set_pins(self, found: dict[tuple[str, str], list[Pinned]]) -> None:
        """All pins of these conversations. Inside `writing`."""
        for key, pins in found.items():
            self.db.execute("DELETE FROM pins WHERE tenant = ? AND conversation_id = ?", key)
            self.db.executemany(
                "INSERT INTO pins VALUES (?, ?, ?, ?, ?)", [(*key, p.name, p.body, p.updated_at) for p in pins]
            )

    def add_seqs(self, seqs: Sequence[tuple[int, str]]) -> None:
        """Numbers of the ledger that are reached. Inside `writing`."""
        self.db.executemany("INSERT OR IGNORE INTO seqs VALUES (?, ?)", seqs)

    def resum(self, tenant: str) -> bool:
        """Make the tenant's digest the sum of its items; whether it was another. Inside `writing`."""
        total = NOTHING
        for (found,) in self.db.execute("SELECT item FROM documents WHERE tenant = ?", (tenant,)):
            total = exchanged(total, None, found)
        before = self.db.execute("SELECT digest FROM tenants WHERE tenant = ?", (tenant,)).fetchone()
        if (before[0] if before is not None else NOTHING) == total:
            return False
        self.db.execute("INSERT OR REPLACE INTO tenants VALUES (?, ?)", (tenant, total))
        return True

    def digests(self) -> dict[str, str]:
        """By tenant, of those that have anything."""
        rows = self.db.execute("SELECT tenant, digest FROM tenants WHERE digest <> ?", (NOTHING,))
        return {tenant: digest.hex() for tenant, digest in rows}

    def documents(self) -> int:
        """How many have anything."""
        return int(self.db.execute("SELECT count(*) FROM documents").fetchone()[0])

    def tenants(self) -> list[str]:
        """All that have anything."""
        return [row[0] for row in self.db.execute("SELECT tenant FROM tenants WHERE digest <> ?", (NOTHING,))]

    def pinned(self) -> list[tuple[str, str]]:
        """Every conversation, and every tenant, that has pins."""
        return list(self.db.execute("SELECT DISTINCT tenant, conversation_id FROM pins"))

    def between(self, tenant: str, after: str, last: str | None) -> list[Key]:
        """Documents after a name, up to another (None: to the end), in the order of bytes."""
        rows = self.db.execute(
            "SELECT document_id FROM documents WHERE tenant = ? AND document_id > ? AND (? IS NULL OR document_id <= ?)"
            " ORDER BY document_id",
            (tenant, after, last, last),
        )
        return [(tenant, name) for (name,) in rows]

    def item(self, key: Key) -> bytes | None:
        """The item of what is in the file, computed anew; none at all where it is not the one that was noted."""
        entry = self._entry(key)
        made = item(entry) if entry is not None else None
        return made if made == self.noted(key) else b""

    def noted(self, key: Key) -> bytes | None:
        """The item that was written with the document."""
        row = self.db.execute("SELECT item FROM documents WHERE tenant = ? AND document_id = ?", key).fetchone()
        return row[0] if row is not None else None

    def _entry(self, key: Key) -> Entry | None:
        row = self.db.execute("SELECT * FROM documents WHERE tenant = ? AND document_id = ?", key).fetchone()
        if row is None:
            return None
        document, _, _, _, version, seq, kind, conversation, title, _ = row
        live = None
        if version is not None:
            rows = self.db.execute(
                "SELECT k.chunk, k.section, k.start_char, k.end_char, coalesce(t.body, ''), k.vector FROM chunks k"
                " LEFT JOIN texts t ON t.rowid = k.id WHERE k.document = ? ORDER BY k.chunk",
                (document,),
            )
            chunks = [Chunk(*values) for values in rows]
            live = Live(version, seq, kind, conversation, title, chunks_sha256(chunks), chunks)
        waiting = [
            Waiting(version, seq, kind, conversation, title, content, bool(failed))
            for version, seq, kind, conversation, title, content, failed in self.db.execute(
                "SELECT version, seq, kind, conversation_id, title, content, failed FROM waiting WHERE document = ?"
                " ORDER BY version",
                (document,),
            )
        ]
        said = self.db.execute(
            "SELECT seq, conversation_id, role, content FROM turns WHERE document = ?", (document,)
        ).fetchone()
        return Entry(*key, live, waiting, Said(*said) if said is not None else None)

    def copy_to(self, path: Path) -> None:
        """All of it as one transaction sees it, into a new file."""
        with closing(sqlite3.connect(self.path, timeout=1)) as source, closing(sqlite3.connect(path)) as copy:
            # What was deleted leaves the log as well; where somebody reads for that long, the next time.
            source.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            source.backup(copy)
            # A copy that nobody writes needs no log beside it.
            copy.execute("PRAGMA journal_mode = DELETE")

    def notes(self) -> dict[str, str]:
        """All notes, for a manifest."""
        return dict(self.db.execute("SELECT name, value FROM meta"))
