"""Pages of what a tenant has, in the order of a key that does not change: what is there throughout is listed once."""

from typing import Any

from psycopg.rows import DictRow

from devmentor.pbml.db import Connection

SCAN = 1000
"""Rows looked at for a page, however few of them are wanted: a rare status must not make it a walk over everything."""

_AFTER_IDS = "~"
"""Above every client's document id and below every turn's."""


async def documents(
    c: Connection, tenant: str, after: str, limit: int, *, prefix: str = "", status: str | None = None
) -> tuple[list[DictRow], str | None]:
    """Documents that were not deleted, with their newest version, and the id to go on after; None at the end.

    A page may be short, or empty, and yet not be the last.
    """
    cursor = await c.execute(
        "SELECT d.document_id, d.latest_version AS version, nullif(d.live_version, 0) AS live_version,"
        " d.deleted_version < d.latest_version AS there, v.title, v.status, v.failure, v.content_bytes,"
        " v.received_at, v.live_at"
        " FROM documents d JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id"
        " AND v.version = d.latest_version"
        ' WHERE d.tenant = %s AND d.document_id COLLATE "C" > %s AND d.document_id COLLATE "C" >= %s'
        ' AND d.document_id COLLATE "C" < %s'
        ' ORDER BY d.document_id COLLATE "C" LIMIT %s',
        (tenant, after, prefix, prefix + _AFTER_IDS, SCAN),
    )
    scanned = await cursor.fetchall()
    return page_of(scanned, limit, lambda row: bool(row.pop("there")) and status in (None, row["status"]))


def page_of(scanned: list[DictRow], limit: int, wanted: Any) -> tuple[list[DictRow], str | None]:
    """The first `limit` wanted rows of a scan, and the document id to go on after; None where the scan saw the end."""
    page: list[DictRow] = []
    for row in scanned:
        if len(page) == limit:
            return page, page[-1]["document_id"]
        if wanted(row):
            page.append(row)
    return page, scanned[-1]["document_id"] if len(scanned) == SCAN else None


async def conversations(
    c: Connection, tenant: str, after: str, limit: int, *, prefix: str = ""
) -> tuple[list[DictRow], str | None]:
    """Conversations that have turns, with the newest one's seq, and the id to go on after; None at the end."""
    cursor = await c.execute(
        "SELECT c.conversation_id, (SELECT v.seq FROM versions v JOIN documents d"
        " ON d.tenant = v.tenant AND d.document_id = v.document_id AND d.deleted_version < v.version"
        " WHERE v.tenant = c.tenant AND v.conversation_id = c.conversation_id AND v.kind = 'turn'"
        " AND v.content IS NOT NULL ORDER BY v.seq DESC LIMIT 1) AS seq"
        ' FROM conversations c WHERE c.tenant = %s AND c.conversation_id COLLATE "C" > %s'
        ' AND c.conversation_id COLLATE "C" >= %s AND c.conversation_id COLLATE "C" < %s'
        ' ORDER BY c.conversation_id COLLATE "C" LIMIT %s',
        (tenant, after, prefix, prefix + _AFTER_IDS, limit),
    )
    scanned = await cursor.fetchall()
    following = scanned[-1]["conversation_id"] if len(scanned) == limit else None
    return [row for row in scanned if row["seq"] is not None], following


async def turns(c: Connection, tenant: str, conversation_id: str, after: int, limit: int) -> list[DictRow]:
    """Turns of a conversation that were not deleted, oldest first, after a seq."""
    cursor = await c.execute(
        "SELECT v.seq, v.document_id, v.role, v.content, v.status, v.received_at FROM versions v"
        " JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id AND d.deleted_version < v.version"
        " WHERE v.tenant = %s AND v.conversation_id = %s AND v.kind = 'turn' AND v.content IS NOT NULL AND v.seq > %s"
        " ORDER BY v.seq LIMIT %s",
        (tenant, conversation_id, after, limit),
    )
    return await cursor.fetchall()


async def contents(c: Connection, tenant: str, ids: list[str]) -> list[DictRow]:
    """The newest versions of documents with their texts, in the order of ids; not those that were deleted meanwhile."""
    cursor = await c.execute(
        "SELECT v.document_id, v.version, v.title, v.metadata, v.content, v.received_at"
        " FROM documents d JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id"
        " AND v.version = d.latest_version"
        " WHERE d.tenant = %(tenant)s AND d.document_id = ANY(%(ids)s) AND d.deleted_version < d.latest_version"
        ' AND v.content IS NOT NULL ORDER BY d.document_id COLLATE "C"',
        {"tenant": tenant, "ids": ids},
    )
    return await cursor.fetchall()
