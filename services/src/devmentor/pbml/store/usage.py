"""What tenants store: newest versions that were not deleted. A trigger counts, in the transaction that accepts."""

from collections.abc import Sequence
from dataclasses import dataclass

from devmentor.pbml.db import Connection


@dataclass(frozen=True, slots=True)
class Usage:
    """`bytes`: UTF-8 of the raw texts of documents and turns."""

    bytes: int
    documents: int
    turns: int


async def read(c: Connection, tenant: str) -> Usage | None:
    """A tenant's usage as of the last commits; None while what was there before the trigger is not counted yet."""
    cursor = await c.execute(
        "SELECT coalesce(u.bytes, 0) AS bytes, coalesce(u.documents, 0) AS documents, coalesce(u.turns, 0) AS turns"
        " FROM maintenance m LEFT JOIN tenant_usage u ON u.tenant = %s"
        " WHERE m.task = 'usage' AND (m.state ->> 'counted')::boolean",
        (tenant,),
    )
    row = await cursor.fetchone()
    return Usage(**row) if row is not None else None


async def read_all(c: Connection) -> dict[str, Usage]:
    """Of every tenant that ever stored anything."""
    cursor = await c.execute("SELECT tenant, bytes, documents, turns FROM tenant_usage")
    return {row.pop("tenant"): Usage(**row) for row in await cursor.fetchall()}


async def stored_bytes(c: Connection, tenant: str, document_ids: Sequence[str]) -> dict[str, int]:
    """What the newest version of each document counts; those that do not exist or were deleted are not in it."""
    cursor = await c.execute(
        "SELECT d.document_id, v.content_bytes FROM documents d JOIN versions v ON v.tenant = d.tenant"
        " AND v.document_id = d.document_id AND v.version = d.latest_version"
        " WHERE d.tenant = %s AND d.document_id = ANY(%s) AND d.deleted_version < d.latest_version",
        (tenant, list(document_ids)),
    )
    return {row["document_id"]: row["content_bytes"] for row in await cursor.fetchall()}
