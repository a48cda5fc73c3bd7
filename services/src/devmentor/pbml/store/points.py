"""Which points the index should have, by the ledger's word."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import DictRow

from devmentor.pbml.db import Connection
from devmentor.pbml.store.chunks import unpack

Key = tuple[str, str, int, int]
"""tenant, document id, version, chunk: the order of the chunks' primary key"""

FIRST: Key = ("", "", 0, -1)


@dataclass(frozen=True, slots=True)
class WantedChunk:
    """A chunk that the index should have."""

    key: Key
    conversation_id: str | None
    vector: list[float]


async def wanted_page(c: Connection, after: Key, limit: int) -> tuple[list[WantedChunk], Key | None]:
    """Of the next `limit` chunks those that a new index needs, with vectors, and where to go on; None at the end.

    Those of a version that its job is about to make live are among them: the job may have written its points already,
    to the collection that was lost.
    """
    rows, following = await _page(c, after, limit, vectors=True)
    return [_chunk(row) for row in rows if row["live"] is not None], following


async def live_page(c: Connection, after: Key, limit: int) -> tuple[list[Key], Key | None]:
    """Of the next `limit` chunks those of live versions, whose points must be there."""
    rows, following = await _page(c, after, limit, vectors=False)
    return [_key(row) for row in rows if row["live"]], following


async def _page(c: Connection, after: Key, limit: int, *, vectors: bool) -> tuple[list[DictRow], Key | None]:
    # The limit is on what is looked at: however much of it is not wanted, a page is bounded.
    cursor = await c.execute(
        "WITH p AS (SELECT tenant, document_id, version, chunk, conversation_id,"
        " CASE WHEN %s THEN embedding END AS embedding FROM chunks"
        " WHERE (tenant, document_id, version, chunk) > (%s, %s, %s, %s)"
        " ORDER BY tenant, document_id, version, chunk LIMIT %s)"
        " SELECT p.*, w.live FROM p LEFT JOIN indexable_versions w"
        " ON w.tenant = p.tenant AND w.document_id = p.document_id AND w.version = p.version"
        " ORDER BY p.tenant, p.document_id, p.version, p.chunk",
        (vectors, *after, limit),
    )
    rows = await cursor.fetchall()
    return rows, _key(rows[-1]) if len(rows) == limit else None


async def wanted_chunks(c: Connection, keys: Sequence[Key]) -> list[WantedChunk]:
    """Of these chunks those that the index should have, with their vectors."""
    cursor = await c.execute(
        "SELECT k.tenant, k.document_id, k.version, k.chunk, k.conversation_id, k.embedding"
        " FROM unnest(%s::text[], %s::text[], %s::int[], %s::int[]) AS a(tenant, document_id, version, chunk)"
        " JOIN chunks k ON k.tenant = a.tenant AND k.document_id = a.document_id AND k.version = a.version"
        " AND k.chunk = a.chunk"
        " JOIN indexable_versions w ON w.tenant = k.tenant AND w.document_id = k.document_id AND w.version = k.version",
        tuple(list(column) for column in zip(*keys, strict=True)),
    )
    return [_chunk(row) for row in await cursor.fetchall()]


async def wanted_versions(c: Connection, versions: Sequence[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """Of these (tenant, document id, version) those of which the index may have points."""
    cursor = await c.execute(
        "SELECT w.tenant, w.document_id, w.version"
        " FROM unnest(%s::text[], %s::text[], %s::int[]) AS a(tenant, document_id, version)"
        " JOIN indexable_versions w ON w.tenant = a.tenant AND w.document_id = a.document_id AND w.version = a.version",
        tuple(list(column) for column in zip(*versions, strict=True)),
    )
    return {(row["tenant"], row["document_id"], row["version"]) for row in await cursor.fetchall()}


def _key(row: DictRow) -> Key:
    return row["tenant"], row["document_id"], row["version"], row["chunk"]


def _chunk(row: DictRow) -> WantedChunk:
    return WantedChunk(_key(row), row["conversation_id"], unpack(row["embedding"]))


async def live_points(c: Connection) -> int:
    """Chunks of live versions: at least so many points the index must have."""
    cursor = await c.execute("SELECT coalesce(sum(chunks), 0)::bigint AS chunks FROM versions WHERE status = 'live'")
    row = await cursor.fetchone()
    assert row is not None
    return int(row["chunks"])
