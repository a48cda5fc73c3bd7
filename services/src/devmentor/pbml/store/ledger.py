"""What the ledger tells readers: a document's state, and the texts that the index does not have yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devmentor.pbml.db import Connection

_NO_WATERMARK = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Pending:
    """An acknowledged version that is not live yet."""

    seq: int
    document_id: str
    version: int
    kind: str
    title: str | None
    content: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Acknowledged versions that an answer does not draw on: given up, and on their way to the index."""

    failed: int
    unindexed: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation."""

    seq: int
    document_id: str
    role: str
    content: str


async def document_status(c: Connection, tenant: str, document_id: str) -> dict[str, Any] | None:
    """The newest version's ledger row, and which version is live."""
    cursor = await c.execute(
        "SELECT v.document_id, v.version, v.seq, v.kind, v.title, v.metadata, v.status, v.failure, v.chunks,"
        " v.content_bytes, v.received_at, v.embedded_at, v.indexed_at, v.live_at,"
        " nullif(d.live_version, 0) AS live_version"
        " FROM documents d JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id"
        " AND v.version = d.latest_version"
        " WHERE d.tenant = %s AND d.document_id = %s AND d.deleted_version < d.latest_version",
        (tenant, document_id),
    )
    return await cursor.fetchone()


async def watermark_exists(c: Connection, tenant: str, seq: int) -> bool:
    """Whether this tenant's ledger has come to `seq`."""
    cursor = await c.execute("SELECT 1 FROM versions WHERE seq = %s AND tenant = %s", (seq, tenant))
    return await cursor.fetchone() is not None


async def pending_versions(
    c: Connection, tenant: str, up_to: int, conversation_id: str | None, document_ids: Sequence[str] | None, limit: int
) -> list[Pending]:
    """Acknowledged up to the watermark and not live yet, newest first, one version a document."""
    cursor = await c.execute(
        "SELECT v.seq, v.document_id, v.version, v.kind, v.title, v.content"
        " FROM pending_versions v JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id"
        " WHERE v.tenant = %(tenant)s AND v.seq <= %(up_to)s"
        " AND v.content IS NOT NULL AND v.version > greatest(d.live_version, d.deleted_version)"
        " AND (v.kind = 'document' OR v.conversation_id = %(conversation)s)"
        " AND (%(ids)s::text[] IS NULL OR v.document_id = ANY(%(ids)s) OR v.kind = 'turn')"
        " AND NOT EXISTS (SELECT 1 FROM pending_versions n WHERE n.tenant = v.tenant"
        " AND n.document_id = v.document_id AND n.version > v.version AND n.seq <= %(up_to)s)"
        " ORDER BY v.seq DESC LIMIT %(limit)s",
        {
            "tenant": tenant,
            "up_to": up_to,
            "conversation": conversation_id,
            "ids": list(document_ids) if document_ids is not None else None,
            "limit": limit,
        },
    )
    return [Pending(**row) for row in await cursor.fetchall()]


async def missing_versions(
    c: Connection,
    tenant: str,
    up_to: int | None,
    conversation_id: str | None,
    document_ids: Sequence[str] | None,
    served: Sequence[int],
) -> Missing:
    """How many documents and turns have a newest version, up to the watermark, that is neither live nor `served`.

    Counted among the newest 100 that failed and the newest 100 that wait: a tenant may have any number.
    """
    cursor = await c.execute(
        "WITH late AS ("
        "SELECT * FROM (SELECT tenant, document_id, version, status FROM versions"
        " WHERE status = 'failed' AND tenant = %(tenant)s AND seq <= %(up_to)s"
        " AND NOT (seq = ANY(%(served)s::bigint[]))"
        " AND (kind = 'document' OR conversation_id = %(conversation)s)"
        " AND (%(ids)s::text[] IS NULL OR document_id = ANY(%(ids)s) OR kind = 'turn')"
        " ORDER BY seq DESC LIMIT 100) failed"
        " UNION ALL "
        "SELECT * FROM (SELECT tenant, document_id, version, status FROM pending_versions"
        " WHERE tenant = %(tenant)s AND seq <= %(up_to)s"
        " AND NOT (seq = ANY(%(served)s::bigint[]))"
        " AND (kind = 'document' OR conversation_id = %(conversation)s)"
        " AND (%(ids)s::text[] IS NULL OR document_id = ANY(%(ids)s) OR kind = 'turn')"
        " ORDER BY seq DESC LIMIT 100) pending)"
        " SELECT count(*) FILTER (WHERE v.status = 'failed') AS failed,"
        " count(*) FILTER (WHERE v.status <> 'failed') AS unindexed"
        " FROM late v JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id"
        " WHERE v.version > greatest(d.live_version, d.deleted_version)"
        " AND NOT EXISTS (SELECT 1 FROM versions n WHERE n.tenant = v.tenant"
        " AND n.document_id = v.document_id AND n.version > v.version AND n.seq <= %(up_to)s)",
        {
            "tenant": tenant,
            "up_to": up_to if up_to is not None else _NO_WATERMARK,
            "conversation": conversation_id,
            "ids": list(document_ids) if document_ids is not None else None,
            "served": list(served),
        },
    )
    row = await cursor.fetchone()
    assert row is not None
    return Missing(**row)


async def recent_turns(c: Connection, tenant: str, conversation_id: str, limit: int) -> list[Turn]:
    """The latest turns that were not deleted, newest first.

    Asked as a range of (tenant, conversation, seq): with two equalities and an order by seq the planner may walk the
    whole ledger back to the last turn of a conversation that went quiet. The range has but one index that is in order.
    """
    cursor = await c.execute(
        "SELECT v.seq, v.document_id, v.role, v.content FROM versions v"
        " JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id AND d.deleted_version < v.version"
        " WHERE (v.tenant, v.conversation_id, v.seq) > (%(tenant)s, %(conversation)s, 0)"
        " AND (v.tenant, v.conversation_id, v.seq) < (%(tenant)s, %(conversation)s, %(no_watermark)s)"
        " AND v.kind = 'turn' AND v.content IS NOT NULL"
        " ORDER BY v.tenant DESC, v.conversation_id DESC, v.seq DESC LIMIT %(limit)s",
        {"tenant": tenant, "conversation": conversation_id, "no_watermark": _NO_WATERMARK, "limit": limit},
    )
    return [Turn(**row) for row in await cursor.fetchall()]
