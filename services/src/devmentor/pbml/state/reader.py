"""What the API reads from the state's file. Blocking calls, each with a connection of its own; for a thread."""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from devmentor.pbml.state import place
from devmentor.pbml.state.entry import NOTHING
from devmentor.pbml.state.file import FORMAT, scope
from devmentor.pbml.store.chunks import LiveChunk
from devmentor.pbml.store.ledger import Missing, Pending, Turn
from devmentor.pbml.store.pins import OF_TENANT, Pin

Hit = tuple[str, int, int, float]
"""document id, version, chunk, score"""

_STEPS = 20_000
_MOST_WORDS = 16
_CANDIDATES = 1000


class StateAway(Exception):
    """There is no state, or it can not be read or answer yet."""


@dataclass(frozen=True, slots=True)
class About:
    """Where a state stands. `position` is None where it is not comparable now; `at` is Unix time of the last look."""

    position: str | None
    at: float
    snapshot: str
    digest: str


@dataclass(frozen=True, slots=True)
class Scope:
    """Which chunks a request may see: the tenant's documents, or those that are named, and a conversation's turns."""

    tenant: str
    conversation_id: str | None
    document_ids: Sequence[str] | None

    @property
    def match(self) -> str:
        """As FTS5 asks for it."""
        if self.document_ids is None:
            words = [scope(self.tenant)]
        else:
            words = [scope(self.tenant, document_id=name) for name in self.document_ids]
        if self.conversation_id is not None:
            words.append(scope(self.tenant, conversation_id=self.conversation_id))
        return "scope : (" + " OR ".join(f'"{word}"' for word in words) + ")"


class Reader:
    """The file that is in use, whichever that is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def reading(self, timeout_s: float | None = None) -> Iterator["View"]:
        """One state of the ledger. StateAway where there is none, or where `timeout_s` seconds have passed."""
        path = place.current(self._directory)
        if path is None:
            raise StateAway(f"{self._directory}: no state yet")
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
                if timeout_s is not None:
                    until = time.monotonic() + timeout_s
                    db.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
                db.execute("BEGIN")
                if db.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                    raise StateAway(f"{path}: another release's")
                notes = dict(db.execute("SELECT name, value FROM meta"))
                if "loaded" not in notes or "at" not in notes:
                    raise StateAway(f"{path}: it is being loaded")
                yield View(db, notes)
        except sqlite3.Error as error:
            raise StateAway(f"{path}: {error}") from error

    def checkpoints(self) -> list[dict[str, object]]:
        """What the manifests say, oldest first."""
        manifests = sorted((self._directory / place.CHECKPOINTS).glob("*.json"))
        return [{"file": path.with_suffix(".db").name, **json.loads(path.read_text())} for path in manifests]


class View:
    """One transaction on the file; `notes` say where it stands in the log."""

    def __init__(self, db: sqlite3.Connection, notes: dict[str, str]) -> None:
        self._db = db
        self.notes = notes

    def about(self, tenant: str) -> About:
        """Where it stands, and the tenant's digest."""
        row = self._db.execute("SELECT digest FROM tenants WHERE tenant = ?", (tenant,)).fetchone()
        notes = self.notes
        digest = (row[0] if row is not None else NOTHING).hex()
        return About(notes.get("position"), float(notes["at"]), notes["snapshot"], digest)

    def documents(self, tenant: str) -> int:
        """How many of the tenant have anything; it counts them."""
        found = self._db.execute("SELECT count(*) FROM documents WHERE tenant = ?", (tenant,))
        return int(found.fetchone()[0])

    def digests(self) -> dict[str, str]:
        """By tenant."""
        rows = self._db.execute("SELECT tenant, digest FROM tenants WHERE digest <> ? ORDER BY tenant", (NOTHING,))
        return {tenant: digest.hex() for tenant, digest in rows}

    def reached(self, tenant: str, seq: int) -> bool:
        """Whether the state has come to this number of the tenant's ledger."""
        found = self._db.execute("SELECT 1 FROM seqs WHERE seq = ? AND tenant = ?", (seq, tenant))
        return found.fetchone() is not None

    def pins(self, tenant: str, conversation_id: str | None) -> list[Pin]:
        """Of the conversation by name, then of the tenant."""
        rows = self._db.execute(
            "SELECT conversation_id, name, body, updated_at FROM pins WHERE tenant = ? AND conversation_id IN (?, ?)"
            " ORDER BY conversation_id DESC, name",
            (tenant, conversation_id or OF_TENANT, OF_TENANT),
        )
        return [Pin(conversation, name, body, datetime.fromisoformat(at)) for conversation, name, body, at in rows]

    def turns(self, tenant: str, conversation_id: str, limit: int) -> list[Turn]:
        """The latest, newest first."""
        rows = self._db.execute(
            "SELECT t.seq, d.document_id, t.role, t.content FROM turns t JOIN documents d ON d.id = t.document"
            " WHERE t.tenant = ? AND t.conversation_id = ? ORDER BY t.seq DESC LIMIT ?",
            (tenant, conversation_id, limit),
        )
        return [Turn(*row) for row in rows]

    def pending(self, asked: Scope, up_to: int, limit: int) -> list[Pending]:
        """Acknowledged up to a number and not live, newest first, one version a document."""
        found: dict[str, Pending] = {}
        rows = self._waiting(asked, up_to, "AND w.content IS NOT NULL AND NOT w.failed")
        for seq, document, version, kind, title, content, _failed in rows:
            if len(found) == limit:
                break
            if document not in found:
                found[document] = Pending(seq, document, version, kind, title, content)
        return list(found.values())

    def missing(self, asked: Scope, up_to: int | None, served: Sequence[int]) -> Missing:
        """Documents and turns whose newest version, up to a number, is neither live nor served."""
        newest: dict[str, tuple[int, bool]] = {}
        for seq, document, *_rest, failed in self._waiting(asked, up_to if up_to is not None else 2**63 - 1, ""):
            newest.setdefault(document, (seq, bool(failed)))
        left = [failed for seq, failed in newest.values() if seq not in served]
        return Missing(failed=sum(left), unindexed=len(left) - sum(left))

    def _waiting(self, asked: Scope, up_to: int, condition: str) -> Iterator[tuple[int, str, int, str, str, str, int]]:
        ids = json.dumps(list(asked.document_ids)) if asked.document_ids is not None else None
        return self._db.execute(
            "SELECT w.seq, d.document_id, w.version, w.kind, w.title, w.content, w.failed FROM waiting w"  # noqa: S608
            " JOIN documents d ON d.id = w.document WHERE w.tenant = :tenant AND w.seq <= :up_to"
            " AND (w.kind = 'document' OR w.conversation_id = :conversation)"
            " AND (:ids IS NULL OR w.kind = 'turn' OR d.document_id IN (SELECT value FROM json_each(:ids)))"
            f" {condition} ORDER BY w.seq DESC LIMIT 200",
            {"tenant": asked.tenant, "up_to": up_to, "conversation": asked.conversation_id, "ids": ids},
        )

    def live_chunks(self, tenant: str, hits: Sequence[Hit]) -> list[LiveChunk]:
        """The hits that are live here, with their texts."""
        found = []
        for document, version, number, score in hits:
            row = self._db.execute(
                f"SELECT {_LIVE} FROM documents d CROSS JOIN chunks k ON k.document = d.id CROSS JOIN texts"  # noqa: S608
                " ON texts.rowid = k.id WHERE d.tenant = ? AND d.document_id = ? AND d.version = ? AND k.chunk = ?",
                (tenant, document, version, number),
            ).fetchone()
            if row is not None:
                found.append(_chunk(row, score))
        return found

    def by_words(self, asked: Scope, words: Sequence[str], limit: int) -> list[LiveChunk]:
        """Chunks with all of the words, then with any of them; in both the best first, by BM25."""
        found: dict[int, LiveChunk] = {}
        known = sorted(words, key=lambda word: (-len(word), word))[:_MOST_WORDS]
        for joined in (" AND ", " OR ")[: len(known)]:
            match = f"{asked.match} AND body : ({joined.join(_quoted(word) for word in known)})"
            rows = self._db.execute(
                f"SELECT k.id, -bm25(texts, 0.0, 1.0), {_LIVE} FROM texts CROSS JOIN chunks k ON k.id = texts.rowid"  # noqa: S608
                " CROSS JOIN documents d ON d.id = k.document WHERE texts MATCH ? AND d.tenant = ?"
                " ORDER BY bm25(texts, 0.0, 1.0) LIMIT ?",
                (match, asked.tenant, limit),
            )
            for rowid, score, *values in rows:
                found.setdefault(rowid, _chunk(values, score))
            if len(found) >= limit:
                break
        return list(found.values())[:limit]

    def nearest(
        self, asked: Scope, vector: Sequence[float], words: Sequence[str], *, limit: int, min_score: float, most: int
    ) -> list[Hit]:
        """By cosine: among all chunks of the scope where these are at most `most`, else among those with the words."""
        ids = self._rowids(asked.match, most + 1)
        if len(ids) > most:
            quoted = " OR ".join(_quoted(word) for word in sorted(words)[:_MOST_WORDS])
            ids = self._rowids(f"{asked.match} AND body : ({quoted})", min(most, _CANDIDATES)) if quoted else []
        rows = self._db.execute(
            "SELECT d.document_id, d.version, k.chunk, k.vector FROM json_each(?) j CROSS JOIN chunks k"
            " ON k.id = j.value CROSS JOIN documents d ON d.id = k.document WHERE d.tenant = ?",
            (json.dumps(ids), asked.tenant),
        ).fetchall()
        query = np.asarray(vector, dtype="<f4")
        usable = [row for row in rows if len(row[3]) == query.nbytes]
        if not usable:
            return []
        vectors = np.frombuffer(b"".join(row[3] for row in usable), dtype="<f4").reshape(len(usable), -1)
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        scores = (vectors @ query) / np.where(norms > 0, norms, 1)
        order = np.argsort(-scores, kind="stable")[:limit]
        return [(*usable[place][:3], float(scores[place])) for place in order if scores[place] >= min_score]

    def _rowids(self, match: str, limit: int) -> list[int]:
        rows = self._db.execute("SELECT rowid FROM texts WHERE texts MATCH ? LIMIT ?", (match, limit))
        return [row[0] for row in rows]


# Joins are CROSS where SQLite, which has no statistics, must not choose their order.
_LIVE = "d.document_id, d.version, k.chunk, k.section, d.title, texts.body, d.kind, k.start_char, k.end_char"


def _chunk(row: Sequence[Any], score: float) -> LiveChunk:
    document, version, number, section, title, body, kind, start, end = row
    return LiveChunk(document, version, number, section, title, body, kind, start, end, score)


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'
