"""What PBML leans on, in memory."""

import json
import re
import sqlite3
from contextlib import asynccontextmanager
from types import SimpleNamespace

from psycopg.types.json import Jsonb

TABLES = """
    CREATE TABLE documents (tenant, document_id, latest_version, live_version DEFAULT 0, deleted_version DEFAULT 0,
        PRIMARY KEY (tenant, document_id));
    CREATE TABLE versions (seq INTEGER PRIMARY KEY, tenant, document_id, version, kind, conversation_id, role, title,
        metadata, content, content_bytes DEFAULT 0, status DEFAULT 'received', failure, failed_runs DEFAULT 0, chunks,
        chunker,
        received_at DEFAULT '2026-01-01T00:00:00+00:00', embedded_at, indexed_at, live_at);
    CREATE VIEW pending_versions AS SELECT * FROM versions WHERE status IN ('received', 'embedded', 'indexed');
    CREATE TRIGGER pending INSTEAD OF UPDATE ON pending_versions BEGIN
        UPDATE versions SET status = NEW.status, failure = NEW.failure WHERE seq = OLD.seq; END;
    CREATE TABLE chunks (tenant, document_id, version, chunk, conversation_id, section, start_char, end_char, body,
        embedding);
    CREATE TABLE pins (tenant, conversation_id, name, body, updated_at DEFAULT 0,
        PRIMARY KEY (tenant, conversation_id, name));
    CREATE TABLE summaries (tenant, conversation_id, level, first_seq, last_seq, turns, body, shown, parent_seq,
        sources, model, made_at DEFAULT 0, PRIMARY KEY (tenant, conversation_id, level, first_seq));
    CREATE TABLE folds (tenant, conversation_id, folded_seq DEFAULT 0, seen_seq DEFAULT 0, due_at, holder, held_until,
        failed_runs DEFAULT 0, failure, parked_at, PRIMARY KEY (tenant, conversation_id));
    CREATE TABLE generations (tenant, shard, generation, PRIMARY KEY (tenant, shard));
    CREATE TABLE idempotency (tenant, key, request_sha256, response);
    CREATE VIEW indexable_versions AS SELECT v.tenant, v.document_id, v.version, v.status = 'live' AS live
        FROM versions v JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id
        WHERE v.status IN ('embedded', 'indexed', 'live') AND v.kind <> 'deletion'
        AND v.version >= d.live_version AND v.version > d.deleted_version;
    CREATE TABLE maintenance (task PRIMARY KEY, state DEFAULT '{}', incomplete DEFAULT 0, holder, held_until);
    INSERT INTO maintenance (task) VALUES ('rebuild'), ('reconcile');
    CREATE TABLE conversations (tenant, conversation_id, generation, deleted_at, PRIMARY KEY (tenant, conversation_id));
"""


def _unnested(found: re.Match) -> str:
    """Arrays side by side, as a table."""
    names = found[3].split(", ")
    columns = ", ".join(f"j{i}.value AS {name}" for i, name in enumerate(names))
    joins = " ".join(f"JOIN json_each(?) j{i} ON j{i}.key = j0.key" for i in range(1, len(names)))
    return f"FROM (SELECT {columns} FROM json_each(?) j0 {joins}) AS {found[2]}"


# PostgreSQL's way to say a thing, and SQLite's.
DIALECT = [
    (r"FROM unnest\((.*?)\) AS (\w+)\((.*?)\)", _unnested),
    (r"make_interval\(\w+ => (%s)\)", r"\1"),
    (r"extract\(epoch FROM ([\w.]+ - now\(\))\)", r"(\1)"),
    (r' COLLATE "C"', ""),
    (r" FOR UPDATE( OF \w+)?( SKIP LOCKED)?", ""),
    (r"%\((\w+)\)s", r":\1"),
    (r"%s", "?"),
    (r"::\w+(\[\])?", ""),
    (r"= ANY\((:\w+)\)", r"IN (SELECT value FROM json_each(\1))"),
]


WRITING_WITH = re.compile(r"WITH (\w+) AS \((INSERT .*? RETURNING [\w, ]+)\)")


class Ledger:
    """Database and connection in one: SQLite is near enough to PostgreSQL for the statements of a pipeline."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self.clock = 0.0
        self.db.create_function("now", 0, lambda: self.clock)
        self.db.create_function("greatest", 2, max)
        self.db.create_function("octet_length", 1, lambda text: len(text.encode()))
        self.db.executescript(TABLES)

    def accept(self, version: int, kind: str = "document", document: str = "d") -> None:
        self.db.execute(
            "INSERT INTO documents (tenant, document_id, latest_version) VALUES ('t', ?, ?)"
            " ON CONFLICT DO UPDATE SET latest_version = excluded.latest_version",
            (document, version),
        )
        self.db.execute(
            "INSERT INTO versions (tenant, document_id, version, kind, content) VALUES ('t', ?, ?, ?, ?)",
            (document, version, kind, f"text {version}" if kind == "document" else None),
        )
        if kind == "deletion":
            self.db.execute("UPDATE documents SET deleted_version = ? WHERE document_id = ?", (version, document))

    @asynccontextmanager
    async def read(self, timeout_s=None):
        yield self

    async def write(self, work, timeout_s=None):
        return SimpleNamespace(value=await work(self), durability="primary")

    async def execute(self, statement, values=()):
        if "set_config" in statement:  # the search by words is PostgreSQL's alone; here no text has any
            statement, values = "SELECT NULL AS words", ()
        if "pg_stats" in statement:
            statement, values = "SELECT 0 AS chunks, NULL AS words WHERE false", ()
        if "change_log" in statement:  # no replica follows this ledger
            statement, values = "SELECT 0 AS gone", ()
        if first := WRITING_WITH.match(statement):  # one statement that writes twice: two, here
            count = first[2].count("%s")
            row = await (await self.execute(first[2], values[:count])).fetchone()
            table = f"FROM (SELECT {', '.join(f'? AS {name}' for name in row)}) AS {first[1]}"
            statement = statement[first.end() :].replace(f"FROM {first[1]}", table)
            values = [*values[count:], *row.values()]
        for postgresql, sqlite in DIALECT:
            statement = re.sub(postgresql, sqlite, statement)
        if isinstance(values, dict):
            bound = {name: _storable(value) for name, value in values.items()}
        else:
            bound = [_storable(value) for value in values]
        cursor = self.db.execute(statement, bound)
        rows = [{name: _loaded(name, row[name]) for name in row.keys()} for row in cursor]  # noqa: SIM118

        async def fetchone():
            return rows.pop(0) if rows else None

        async def fetchall():
            return rows

        return SimpleNamespace(rowcount=cursor.rowcount, fetchone=fetchone, fetchall=fetchall)

    def cursor(self):
        @asynccontextmanager
        async def copy(_statement):
            async def write_row(row):
                self.db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

            yield SimpleNamespace(write_row=write_row)

        return SimpleNamespace(copy=copy)

    def column(self, name: str) -> list:
        """A column of the versions, oldest first."""
        return [row[name] for row in self.db.execute("SELECT * FROM versions ORDER BY version")]

    @property
    def statuses(self) -> list[str]:
        return self.column("status")

    @property
    def texts(self) -> list[str | None]:
        return self.column("content")

    @property
    def chunked(self) -> list[int]:
        return [row["version"] for row in self.db.execute("SELECT version FROM chunks ORDER BY version")]


def _loaded(name, value):
    return json.loads(value) if name in ("state", "metadata") and isinstance(value, str) else value


def _storable(value):
    if isinstance(value, Jsonb):
        value = value.obj
    return json.dumps(value) if isinstance(value, dict | list) else value
