"""A version on its way: received, embedded, indexed, live; or superseded, or failed."""

from dataclasses import dataclass

from devmentor.pbml.db import Connection
from devmentor.pbml.store import generations


@dataclass(frozen=True, slots=True)
class Version:
    """A row of the ledger with its text, as the pipeline needs it."""

    tenant: str
    document_id: str
    version: int
    kind: str
    conversation_id: str | None
    title: str | None
    content: str | None
    status: str


async def load_version(c: Connection, tenant: str, document_id: str, version: int) -> Version | None:
    """A version as the pipeline finds it."""
    cursor = await c.execute(
        "SELECT tenant, document_id, version, kind, conversation_id, title, content, status"
        " FROM versions WHERE tenant = %s AND document_id = %s AND version = %s",
        (tenant, document_id, version),
    )
    row = await cursor.fetchone()
    return Version(**row) if row else None


async def overtaken(c: Connection, v: Version) -> bool:
    """Whether a newer version is live or the document was deleted after this version."""
    cursor = await c.execute(
        "SELECT greatest(live_version, deleted_version) > %s AS late FROM documents"
        " WHERE tenant = %s AND document_id = %s",
        (v.version, v.tenant, v.document_id),
    )
    row = await cursor.fetchone()
    return row is None or bool(row["late"])


async def mark_indexed(c: Connection, v: Version) -> None:
    """embedded -> indexed: all points are in Qdrant."""
    await c.execute(
        "UPDATE versions SET status = 'indexed', indexed_at = now()"
        " WHERE tenant = %s AND document_id = %s AND version = %s AND status = 'embedded'",
        (v.tenant, v.document_id, v.version),
    )


async def go_live(c: Connection, v: Version) -> bool:
    """indexed -> live, only if no newer version is and the document was not deleted since.

    True where the version is live now, also by another run of the same job; False where it was overtaken.
    """
    cursor = await c.execute(
        "UPDATE documents SET live_version = %s WHERE tenant = %s AND document_id = %s"
        " AND live_version < %s AND deleted_version < %s",
        (v.version, v.tenant, v.document_id, v.version, v.version),
    )
    if cursor.rowcount != 1:
        return not await overtaken(c, v)
    await c.execute(
        "UPDATE versions SET status = 'live', live_at = now()"
        " WHERE tenant = %s AND document_id = %s AND version = %s AND status = 'indexed'",
        (v.tenant, v.document_id, v.version),
    )
    if v.conversation_id is None:
        await generations.bump_generation(c, v.tenant, v.document_id)
    else:
        await generations.bump_conversation(c, v.tenant, v.conversation_id)
    return True


async def drop_versions(c: Connection, v: Version, *, up_to: int) -> None:
    """Chunks and texts of versions up to `up_to` go; their ledger rows stay and say what happened.

    What readers are served is never dropped, whatever `up_to` says.
    """
    cursor = await c.execute(
        "SELECT live_version FROM documents WHERE tenant = %s AND document_id = %s AND live_version > deleted_version",
        (v.tenant, v.document_id),
    )
    row = await cursor.fetchone()
    key = (v.tenant, v.document_id, up_to, row["live_version"] if row is not None else 0)
    await c.execute(
        "DELETE FROM chunks WHERE tenant = %s AND document_id = %s AND version <= %s AND version <> %s", key
    )
    await c.execute(
        "UPDATE versions SET content = NULL, title = NULL, metadata = '{}', status = 'superseded'"
        " WHERE tenant = %s AND document_id = %s AND version <= %s AND version <> %s AND kind <> 'deletion'"
        " AND (status <> 'superseded' OR content IS NOT NULL)",
        key,
    )


async def finish_deletion(c: Connection, v: Version) -> None:
    """received -> live for a deletion: nothing of the document is left anywhere."""
    await c.execute(
        "UPDATE versions SET status = 'live', indexed_at = now(), live_at = now()"
        " WHERE tenant = %s AND document_id = %s AND version = %s",
        (v.tenant, v.document_id, v.version),
    )


async def count_failure(
    c: Connection, tenant: str, document_id: str, version: int, reason: str, max_runs: int
) -> str | None:
    """A run failed by the version's own fault. After `max_runs` of them it is parked, with the reason.

    The version's kind where it is given up, None where it is to be tried again.
    """
    cursor = await c.execute(
        "UPDATE versions SET failed_runs = failed_runs + 1"
        " WHERE tenant = %s AND document_id = %s AND version = %s RETURNING kind, failed_runs",
        (tenant, document_id, version),
    )
    row = await cursor.fetchone()
    if row is None or row["failed_runs"] < max_runs:
        return None
    await c.execute(
        "UPDATE pending_versions SET status = 'failed', failure = %s"
        " WHERE tenant = %s AND document_id = %s AND version = %s",
        (reason[:1000], tenant, document_id, version),
    )
    kind: str = row["kind"]
    return kind


async def revive(c: Connection, tenant: str, document_id: str) -> tuple[int, int] | None:
    """failed -> where it was, for the newest version: its number and seq. None where that has not failed.

    Chunks that are in the ledger already are not made again: writing them twice is an error.
    """
    cursor = await c.execute(
        "UPDATE versions SET status = CASE WHEN embedded_at IS NULL THEN 'received' ELSE 'embedded' END,"
        " failure = NULL, failed_runs = 0"
        " WHERE tenant = %s AND document_id = %s AND status = 'failed' AND content IS NOT NULL AND version ="
        " (SELECT d.latest_version FROM documents d WHERE d.tenant = versions.tenant"
        " AND d.document_id = versions.document_id)"
        " RETURNING version, seq",
        (tenant, document_id),
    )
    row = await cursor.fetchone()
    return (row["version"], row["seq"]) if row is not None else None


async def failed(c: Connection, tenant: str | None, limit: int) -> list[tuple[str, str]]:
    """(tenant, document id) of newest versions that were given up, oldest first."""
    cursor = await c.execute(
        "SELECT v.tenant, v.document_id FROM versions v JOIN documents d ON d.tenant = v.tenant"
        " AND d.document_id = v.document_id AND d.latest_version = v.version"
        " WHERE v.status = 'failed' AND (%s::text IS NULL OR v.tenant = %s) ORDER BY v.tenant, v.seq LIMIT %s",
        (tenant, tenant, limit),
    )
    return [(row["tenant"], row["document_id"]) for row in await cursor.fetchall()]
