"""Deletions by the thousand: accepted as versions of the ledger at once, and their remains removed in bounded steps."""

from collections.abc import Sequence

from devmentor.pbml.db import Connection
from devmentor.pbml.store import generations, pins, summaries

BATCH = 2000


async def delete_turns(c: Connection, tenant: str, conversation_id: str, limit: int = BATCH) -> tuple[int, int | None]:
    """Up to `limit` turns of a conversation, its pins and summaries are gone for readers from the commit on: how many
    turns, and the newest seq.

    They are versions of kind deletion as any other, so whoever follows the ledger learns of each.
    """
    cursor = await c.execute(
        "SELECT DISTINCT d.document_id FROM versions v"
        " JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id AND d.deleted_version < v.version"
        " WHERE v.tenant = %s AND v.conversation_id = %s AND v.kind = 'turn' ORDER BY d.document_id LIMIT %s",
        (tenant, conversation_id, limit),
    )
    ids = [row["document_id"] for row in await cursor.fetchall()]
    seq = await delete_documents(c, tenant, ids) if ids else None
    await pins.remove_conversation(c, tenant, conversation_id)
    await generations.bump_conversation(c, tenant, conversation_id)
    # A replica's spool may have turns that were said before this.
    await c.execute(
        "UPDATE conversations SET deleted_at = now() WHERE tenant = %s AND conversation_id = %s",
        (tenant, conversation_id),
    )
    # After that row is locked: a summary that is being written is seen, or sees the deletions.
    await summaries.remove_conversation(c, tenant, conversation_id)
    return len(ids), seq


async def delete_tenant(c: Connection, tenant: str, limit: int = BATCH) -> tuple[int, int | None]:
    """Up to `limit` documents and turns of a tenant, its pins and summaries are gone for readers: how many documents
    and turns, and the newest seq.
    """
    cursor = await c.execute(
        "SELECT document_id FROM documents WHERE tenant = %s AND deleted_version < latest_version"
        " ORDER BY document_id LIMIT %s",
        (tenant, limit),
    )
    ids = [row["document_id"] for row in await cursor.fetchall()]
    seq = await delete_documents(c, tenant, ids) if ids else None
    await c.execute("UPDATE generations SET generation = generation + 1 WHERE tenant = %s", (tenant,))
    await c.execute(
        "UPDATE conversations SET generation = generation + 1, deleted_at = now() WHERE tenant = %s", (tenant,)
    )
    await c.execute("DELETE FROM idempotency WHERE tenant = %s", (tenant,))
    await pins.remove_all(c, tenant)
    await summaries.remove_all(c, tenant)
    return len(ids), seq


async def remains(c: Connection, tenant: str) -> int:
    """Versions of a tenant whose text is still stored, or whose job or removal is still to come."""
    cursor = await c.execute(
        "SELECT count(*) AS versions FROM versions WHERE tenant = %s"
        " AND (content IS NOT NULL OR status IN ('received', 'embedded', 'indexed'))",
        (tenant,),
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row["versions"])


async def delete_documents(c: Connection, tenant: str, ids: Sequence[str]) -> int | None:
    """Deletions in a few statements; the newest one's seq, None where all were gone already. Generations are the
    caller's to count.
    """
    # In the order of ids, as everybody who takes several: two of these must not wait for each other.
    await c.execute(
        "SELECT document_id FROM documents WHERE tenant = %(tenant)s AND document_id = ANY(%(ids)s)"
        " ORDER BY document_id FOR UPDATE",
        {"tenant": tenant, "ids": list(ids)},
    )
    cursor = await c.execute(
        "UPDATE documents SET latest_version = latest_version + 1, deleted_version = latest_version + 1"
        " WHERE tenant = %(tenant)s AND document_id = ANY(%(ids)s) AND deleted_version < latest_version"
        " RETURNING document_id, latest_version",
        {"tenant": tenant, "ids": list(ids)},
    )
    gone = await cursor.fetchall()
    if not gone:
        return None
    cursor = await c.execute(
        "INSERT INTO versions (tenant, document_id, version, kind)"
        " SELECT %s, a.document_id, a.version, 'deletion' FROM unnest(%s::text[], %s::int[]) AS a(document_id, version)"
        " RETURNING seq",
        (tenant, [row["document_id"] for row in gone], [row["latest_version"] for row in gone]),
    )
    newest: int = max(row["seq"] for row in await cursor.fetchall())
    return newest


async def unfinished(c: Connection, limit: int) -> list[tuple[str, str, int]]:
    """(tenant, document id, version) of deletions that nothing runs for any more.

    One with an older version still on its way is left to that version's job: removing first and writing after would
    leave points behind.
    """
    cursor = await c.execute(
        "SELECT v.tenant, v.document_id, v.version FROM pending_versions v WHERE v.kind = 'deletion'"
        " AND NOT EXISTS (SELECT 1 FROM pending_versions o WHERE o.tenant = v.tenant"
        " AND o.document_id = v.document_id AND o.version < v.version AND o.kind <> 'deletion')"
        " ORDER BY v.tenant, v.seq LIMIT %s",
        (limit,),
    )
    return [(row["tenant"], row["document_id"], row["version"]) for row in await cursor.fetchall()]


async def drop_deleted(c: Connection, tenant: str, ids: Sequence[str]) -> None:
    """Chunks and texts of deleted versions go; the deletions are live: nothing is left of them anywhere."""
    values = {"tenant": tenant, "ids": list(ids)}
    await c.execute(
        "DELETE FROM chunks WHERE tenant = %(tenant)s AND document_id = ANY(%(ids)s) AND version <="
        " (SELECT d.deleted_version FROM documents d WHERE d.tenant = chunks.tenant"
        " AND d.document_id = chunks.document_id)",
        values,
    )
    await c.execute(
        "UPDATE versions SET content = NULL, title = NULL, metadata = '{}', status = 'superseded'"
        " WHERE tenant = %(tenant)s AND document_id = ANY(%(ids)s) AND kind <> 'deletion' AND version <="
        " (SELECT d.deleted_version FROM documents d WHERE d.tenant = versions.tenant"
        " AND d.document_id = versions.document_id)",
        values,
    )
    await c.execute(
        "UPDATE versions SET status = 'live', indexed_at = now(), live_at = now()"
        " WHERE tenant = %(tenant)s AND document_id = ANY(%(ids)s) AND kind = 'deletion' AND status = 'received'",
        values,
    )
