"""What is older than it is kept. A document is as old as its newest version's acceptance, by PostgreSQL's clock."""

from dataclasses import dataclass
from typing import Any

from devmentor.pbml.db import Connection
from devmentor.pbml.store import generations, removal, summaries

KINDS = ("document", "turn")
BATCH = 500

# A version without a text was superseded or is deleted: `versions_aged` is an index of those with one.
_TOO_OLD = (
    " FROM versions v JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id"
    " AND d.latest_version = v.version AND d.deleted_version < v.version"
    " WHERE v.tenant = %(tenant)s AND v.kind = %(kind)s AND v.content IS NOT NULL"
    " AND v.received_at < now() - make_interval(days => %(days)s)"
)


@dataclass(frozen=True, slots=True)
class Expired:
    """A batch: `found` too old; `number` and `bytes` removed, which what was replaced meanwhile is not; newest seq."""

    found: int
    number: int
    bytes: int
    seq: int | None


async def remove(c: Connection, tenant: str, kind: str, days: int, limit: int = BATCH) -> Expired:
    """The oldest documents or turns are gone for readers from the commit on; the sweep removes what is left of them.

    They are deletions of the ledger as any other. Pinned facts stay.
    """
    values = {"tenant": tenant, "kind": kind, "days": days, "limit": limit}
    cursor = await c.execute(
        f"SELECT v.document_id, v.version, v.conversation_id, v.seq, v.content_bytes{_TOO_OLD}"
        " ORDER BY v.received_at LIMIT %(limit)s",
        values,
    )
    found = await cursor.fetchall()
    if not found:
        return Expired(0, 0, 0, None)
    # A newer version may have come: only under the lock is the newest one known. In the order of ids, as in removal.
    cursor = await c.execute(
        "SELECT d.document_id FROM documents d"
        " JOIN unnest(%(ids)s::text[], %(versions)s::int[]) AS a(document_id, version)"
        " ON a.document_id = d.document_id AND a.version = d.latest_version"
        " WHERE d.tenant = %(tenant)s AND d.deleted_version < d.latest_version"
        " ORDER BY d.document_id FOR UPDATE OF d",
        {
            "tenant": tenant,
            "ids": [row["document_id"] for row in found],
            "versions": [row["version"] for row in found],
        },
    )
    ids = {row["document_id"] for row in await cursor.fetchall()}
    old = [row for row in found if row["document_id"] in ids]
    seq = await removal.delete_documents(c, tenant, sorted(ids)) if ids else None
    await _bump(c, tenant, old)
    return Expired(len(found), len(old), sum(row["content_bytes"] for row in old), seq)


async def _bump(c: Connection, tenant: str, gone: list[dict[str, Any]]) -> None:
    documents = [row["document_id"] for row in gone if row["conversation_id"] is None]
    if documents:
        # Readers know the sum of the shards alone: one of them stands for all that goes with this commit.
        await generations.bump_generation(c, tenant, documents[0])
    turns = [row for row in gone if row["conversation_id"] is not None]
    await generations.bump_conversations(c, tenant, {row["conversation_id"] for row in turns})
    # After those rows are locked: a summary that is being written is seen, or sees the deletions.
    for turn in turns:
        await summaries.withdraw(c, tenant, turn["conversation_id"], turn["seq"])


async def count(c: Connection, tenant: str, kind: str, days: int) -> dict[str, Any]:
    """What would go now: how many, their bytes, and when the oldest was accepted (None where nothing would)."""
    cursor = await c.execute(
        "SELECT count(*) AS number, coalesce(sum(v.content_bytes), 0)::bigint AS bytes, min(v.received_at) AS oldest"
        + _TOO_OLD,
        {"tenant": tenant, "kind": kind, "days": days},
    )
    row = await cursor.fetchone()
    assert row is not None
    return row
