"""Counters that say whether a fetch would retrieve from the same documents and turns as before."""

import hashlib
from collections.abc import Collection

from devmentor.pbml.db import Connection

GENERATION_SHARDS = 16


def shard_of(document_id: str) -> int:
    """Which row of `generations` a document counts in."""
    return hashlib.sha256(document_id.encode()).digest()[0] % GENERATION_SHARDS


async def bump_generation(c: Connection, tenant: str, document_id: str) -> None:
    """Something of this tenant's documents became retrievable or ceased to be."""
    await bump_documents(c, [(tenant, document_id)])


async def bump_documents(c: Connection, documents: Collection[tuple[str, str]]) -> None:
    """The same for several at once: (tenant, document id)."""
    # In order: two of these must not wait for each other.
    rows = sorted({(tenant, shard_of(document_id)) for tenant, document_id in documents})
    if rows:
        await c.execute(
            "INSERT INTO generations SELECT a.tenant, a.shard, 1 FROM unnest(%s::text[], %s::int[]) AS a(tenant, shard)"
            " WHERE true ON CONFLICT (tenant, shard) DO UPDATE SET generation = generations.generation + 1",
            ([tenant for tenant, _shard in rows], [shard for _tenant, shard in rows]),
        )


async def bump_conversation(c: Connection, tenant: str, conversation_id: str) -> None:
    """The same for a conversation's turns, which nobody outside it can retrieve."""
    await c.execute(
        "INSERT INTO conversations (tenant, conversation_id, generation) VALUES (%s, %s, 1)"
        " ON CONFLICT (tenant, conversation_id) DO UPDATE SET generation = conversations.generation + 1",
        (tenant, conversation_id),
    )


async def bump_conversations(c: Connection, tenant: str, conversation_ids: Collection[str]) -> None:
    """The same for several at once."""
    # In the order of ids: two of these must not wait for each other.
    await c.execute(
        "INSERT INTO conversations SELECT %s, a.conversation_id, 1 FROM unnest(%s::text[]) AS a(conversation_id)"
        " ON CONFLICT (tenant, conversation_id) DO UPDATE SET generation = conversations.generation + 1",
        (tenant, sorted(conversation_ids)),
    )


async def current(c: Connection, tenant: str, conversation_id: str | None) -> tuple[int, int]:
    """Of the tenant's documents, and of the conversation (0 where there is none)."""
    cursor = await c.execute(
        "SELECT (SELECT coalesce(sum(generation), 0)::bigint FROM generations WHERE tenant = %s) AS documents,"
        " (SELECT coalesce(max(generation), 0) FROM conversations"
        " WHERE tenant = %s AND conversation_id = %s) AS conversation",
        (tenant, tenant, conversation_id),
    )
    row = await cursor.fetchone()
    assert row is not None
    return row["documents"], row["conversation"]
