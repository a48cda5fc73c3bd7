"""Indexes on tables that may be large: built beside the traffic, which no transaction of a migration could do.

Declared like the collection: what is missing is built, what a broken-off build left invalid is built again, what
nothing uses any more is dropped.
"""

import psycopg
from psycopg import sql

from devmentor.pbml.schema import MigrationFailed
from devmentor.pbml.store import words

# Any number that no other program uses for an advisory lock in this database.
_LOCK = 0x70626D6D
_LOCK_TIMEOUT = "30s"

INDEXES = {
    # A long list of what was inserted lately is read by every search: a short one is worth its merges.
    words.INDEX: f"chunks USING gin ({words.LEXEMES}) WITH (gin_pending_list_limit = 512)",
    # The latest turns of a conversation, however many were deleted before or since.
    "versions_said": "versions (tenant, conversation_id, seq) WHERE kind = 'turn' AND content IS NOT NULL",
    # What retention removes: the oldest texts of a tenant. Not that of deletions, which have none.
    "versions_aged": "versions (tenant, kind, received_at) WHERE content IS NOT NULL",
}
RETIRED = ("chunks_body",)
"""Two word indexes would double what a chunk's write costs. Until all hosts are updated, one of the release before that
has lost Qdrant searches words without an index, within its own deadline."""
_ANALYSED = ("chunks",)
"""Tables whose new index is of an expression: without statistics no word is known to be common."""


def ensure(conninfo: str) -> list[str]:
    """What was done. `conninfo` must lead to a session of PostgreSQL's own. Raises MigrationFailed."""
    done: list[str] = []
    try:
        with psycopg.connect(conninfo, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            # Hosts that are deployed at the same moment wait here. Tried, not waited for: an index is not built while
            # any transaction is older, and that would be the one that waits for this lock.
            while not _value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK):
                connection.execute("SELECT pg_sleep(0.5)")
            connection.execute(sql.SQL("SET lock_timeout = {}").format(_LOCK_TIMEOUT))
            for name, definition in INDEXES.items():
                done += _build(connection, name, definition)
            for name in RETIRED:
                if _value(connection, "SELECT to_regclass(%s) IS NOT NULL", name):
                    connection.execute(f"DROP INDEX CONCURRENTLY {name}")
                    done.append(f"dropped {name}")
    except psycopg.Error as error:
        raise MigrationFailed(f"indexes: {str(error).strip()}; run it again, what is built stays") from error
    return done


def _build(connection: "psycopg.Connection[psycopg.rows.DictRow]", name: str, definition: str) -> list[str]:
    valid = _value(
        connection, "SELECT (SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass(%s))", name
    )
    if valid:
        return []
    if valid is False:
        connection.execute(f"DROP INDEX CONCURRENTLY {name}")
    # Names and definitions are this file's own.
    connection.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
    table = definition.split()[0]
    if table in _ANALYSED:
        connection.execute(f"ANALYZE {table}")
    return [f"built {name}" + (" again: a build was broken off" if valid is False else "")]


def _value(connection: "psycopg.Connection[psycopg.rows.DictRow]", statement: str, *values: object) -> object:
    row = connection.execute(statement, values).fetchone()
    return next(iter(row.values())) if row is not None else None
