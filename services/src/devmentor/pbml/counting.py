"""Counts what tenants had stored before the trigger that counts what is new: once, beside the traffic.

Versions keep their kind and size for good, and each was written either before the trigger (seq up to a mark) or after:
the order in which both are counted does not matter, nor who writes meanwhile.
"""

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from devmentor.pbml.schema import MigrationFailed

PAGE = 5000
"""Documents and turns of one transaction."""

_Connection = psycopg.Connection[dict[str, Any]]

_NEWEST = """
    SELECT d.tenant, d.document_id, v.kind, v.content_bytes
    FROM (
        SELECT tenant, document_id FROM documents WHERE (tenant, document_id) > (%(tenant)s, %(document)s)
        ORDER BY tenant, document_id LIMIT %(limit)s
    ) d LEFT JOIN LATERAL (
        SELECT v.kind, v.content_bytes FROM versions v
        WHERE v.tenant = d.tenant AND v.document_id = d.document_id AND v.seq <= %(up_to)s
        ORDER BY v.version DESC LIMIT 1
    ) v ON true
    ORDER BY d.tenant, d.document_id
"""


def count_usage(conninfo: str) -> list[str]:
    """What was done: nothing where all is counted. Broken off, it goes on where it was. Raises MigrationFailed."""
    looked_at = 0
    try:
        with psycopg.connect(conninfo, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            while (page := _count_page(connection)) is not None:
                looked_at += page
    except psycopg.Error as error:
        raise MigrationFailed(f"usage: {str(error).strip()}; run it again, it goes on where it was") from error
    return [f"counted {looked_at} documents and turns"] if looked_at else []


def _count_page(connection: _Connection) -> int | None:
    """How many rows were looked at; None where everything had been."""
    with connection.transaction():
        # The row's lock: of two who count, one waits, and then goes on after the other's page.
        row = connection.execute("SELECT state FROM maintenance WHERE task = 'usage' FOR UPDATE").fetchone()
        if row is None:
            raise MigrationFailed("usage: the row 'usage' of table maintenance is missing; run migrate")
        state = row["state"]
        if state["counted"]:
            return None
        tenant, document = state.get("after", ("", ""))
        values = {"tenant": tenant, "document": document, "limit": PAGE, "up_to": state["up_to"]}
        rows = connection.execute(_NEWEST, values).fetchall()
        for owner in {row["tenant"] for row in rows}:
            newest = [row for row in rows if row["tenant"] == owner and row["kind"] in ("document", "turn")]
            connection.execute(
                "SELECT add_usage(%s, %s, %s, %s)",
                (
                    owner,
                    sum(row["content_bytes"] for row in newest),
                    sum(row["kind"] == "document" for row in newest),
                    sum(row["kind"] == "turn" for row in newest),
                ),
            )
        if rows:
            state["after"] = [rows[-1]["tenant"], rows[-1]["document_id"]]
        state["counted"] = len(rows) < PAGE
        connection.execute("UPDATE maintenance SET state = %s WHERE task = 'usage'", (Jsonb(state),))
        return len(rows)
