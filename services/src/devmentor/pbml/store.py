"""Every SQL statement of the service, each for one tenant. Callers hold the transaction."""

import array
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from devmentor.pbml.db import Connection

GENERATION_SHARDS = 16


class KeyReused(Exception):
    """An Idempotency-Key came back with another request."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A version that was given at acceptance."""

    document_id: str
    version: int
    seq: int


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


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with its vector."""

    chunk: int
    section: str
    start: int
    end: int
    body: str
    vector: list[float]


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
class Turn:
    """A turn of a conversation."""

    document_id: str
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class LiveChunk:
    """A chunk of a live version."""

    document_id: str
    version: int
    chunk: int
    section: str
    title: str | None
    body: str
    kind: str
    score: float = 0.0


def shard_of(document_id: str) -> int:
    """Which row of `generations` a document counts in."""
    return hashlib.sha256(document_id.encode()).digest()[0] % GENERATION_SHARDS


def pack(vector: Sequence[float]) -> bytes:
    """float32, little endian."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def unpack(data: bytes) -> list[float]:
    """The inverse of pack, within float32."""
    values = array.array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


# -- acceptance -------------------------------------------------------------------------------


async def claim_key(c: Connection, tenant: str, key: str, request: bytes) -> dict[str, Any] | None:
    """None where the key is new (and now ours), else the response that was given before.

    A concurrent request with the same key waits here for the other's commit. A replay writes too: its
    commit can only be acknowledged after the first one's, which the first client may never have seen.
    """
    digest = hashlib.sha256(request).digest()
    cursor = await c.execute(
        "INSERT INTO idempotency (tenant, key, request_sha256) VALUES (%s, %s, %s)"
        " ON CONFLICT (tenant, key) DO UPDATE SET replays = idempotency.replays + 1"
        " RETURNING request_sha256, response",
        (tenant, key, digest),
    )
    row = await cursor.fetchone()
    assert row is not None
    if bytes(row["request_sha256"]) != digest:
        raise KeyReused(key)
    response: dict[str, Any] | None = row["response"]
    return response


async def answer_key(c: Connection, tenant: str, key: str, response: dict[str, Any]) -> None:
    """Keep the response for replays."""
    await c.execute(
        "UPDATE idempotency SET response = %s WHERE tenant = %s AND key = %s", (Jsonb(response), tenant, key)
    )


async def accept_document(
    c: Connection, tenant: str, document_id: str, title: str | None, metadata: dict[str, Any], text: str
) -> Accepted:
    """The next version of a document. Its row is locked until the commit: versions are given in commit order."""
    version = await _next_version(c, tenant, document_id)
    cursor = await c.execute(
        "INSERT INTO versions (tenant, document_id, version, kind, title, metadata, content, content_bytes)"
        " VALUES (%s, %s, %s, 'document', %s, %s, %s, octet_length(%s)) RETURNING seq",
        (tenant, document_id, version, title, Jsonb(metadata), text, text),
    )
    row = await cursor.fetchone()
    assert row is not None
    return Accepted(document_id, version, row["seq"])


async def accept_turn(
    c: Connection, tenant: str, conversation_id: str, document_id: str, role: str, content: str
) -> Accepted:
    """A turn is a document of its own that belongs to a conversation."""
    version = await _next_version(c, tenant, document_id)
    # The conversation's row before the ledger's: turns get their seq in the order of their commits.
    await bump_conversation(c, tenant, conversation_id)
    cursor = await c.execute(
        "INSERT INTO versions"
        " (tenant, document_id, version, kind, conversation_id, role, content, content_bytes)"
        " VALUES (%s, %s, %s, 'turn', %s, %s, %s, octet_length(%s)) RETURNING seq",
        (tenant, document_id, version, conversation_id, role, content, content),
    )
    row = await cursor.fetchone()
    assert row is not None
    return Accepted(document_id, version, row["seq"])


async def accept_deletion(c: Connection, tenant: str, document_id: str) -> Accepted | None:
    """A version that says "gone"; in force from the commit on. None where there is nothing to delete."""
    cursor = await c.execute(
        "UPDATE documents SET latest_version = latest_version + 1, deleted_version = latest_version + 1"
        " WHERE tenant = %s AND document_id = %s AND deleted_version < latest_version RETURNING latest_version",
        (tenant, document_id),
    )
    document = await cursor.fetchone()
    if document is None:
        return None
    version = document["latest_version"]
    cursor = await c.execute(
        "INSERT INTO versions (tenant, document_id, version, kind) VALUES (%s, %s, %s, 'deletion') RETURNING seq",
        (tenant, document_id, version),
    )
    row = await cursor.fetchone()
    assert row is not None
    await bump_generation(c, tenant, document_id)
    return Accepted(document_id, version, row["seq"])


async def _next_version(c: Connection, tenant: str, document_id: str) -> int:
    cursor = await c.execute(
        "INSERT INTO documents (tenant, document_id, latest_version) VALUES (%s, %s, 1)"
        " ON CONFLICT (tenant, document_id) DO UPDATE SET latest_version = documents.latest_version + 1"
        " RETURNING latest_version",
        (tenant, document_id),
    )
    row = await cursor.fetchone()
    assert row is not None
    version: int = row["latest_version"]
    return version


async def bump_generation(c: Connection, tenant: str, document_id: str) -> None:
    """Something of this tenant's documents became retrievable or ceased to be."""
    await c.execute(
        "INSERT INTO generations VALUES (%s, %s, 1)"
        " ON CONFLICT (tenant, shard) DO UPDATE SET generation = generations.generation + 1",
        (tenant, shard_of(document_id)),
    )


async def bump_conversation(c: Connection, tenant: str, conversation_id: str) -> None:
    """The same for a conversation's turns, which nobody outside it can retrieve."""
    await c.execute(
        "INSERT INTO conversations VALUES (%s, %s, 1)"
        " ON CONFLICT (tenant, conversation_id) DO UPDATE SET generation = conversations.generation + 1",
        (tenant, conversation_id),
    )


# -- pipeline ---------------------------------------------------------------------------------


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


async def save_chunks(c: Connection, v: Version, chunks: Sequence[StoredChunk]) -> bool:
    """received -> embedded. False where another run of the job was here first: nothing is written then."""
    cursor = await c.execute(
        "UPDATE versions SET status = 'embedded', embedded_at = now(), chunks = %s, failure = NULL"
        " WHERE tenant = %s AND document_id = %s AND version = %s AND status = 'received'",
        (len(chunks), v.tenant, v.document_id, v.version),
    )
    if cursor.rowcount != 1:
        return False
    async with c.cursor().copy(
        "COPY chunks (tenant, document_id, version, chunk, conversation_id, section,"
        " start_char, end_char, body, embedding) FROM STDIN"
    ) as copy:
        for k in chunks:
            await copy.write_row(
                (
                    v.tenant,
                    v.document_id,
                    v.version,
                    k.chunk,
                    v.conversation_id,
                    k.section,
                    k.start,
                    k.end,
                    k.body,
                    pack(k.vector),
                )
            )
    return True


async def load_vectors(c: Connection, v: Version, after: int, limit: int) -> list[tuple[int, list[float]]]:
    """Chunk numbers above `after` and their vectors, in order."""
    cursor = await c.execute(
        "SELECT chunk, embedding FROM chunks WHERE tenant = %s AND document_id = %s AND version = %s"
        " AND chunk > %s ORDER BY chunk LIMIT %s",
        (v.tenant, v.document_id, v.version, after, limit),
    )
    return [(row["chunk"], unpack(row["embedding"])) for row in await cursor.fetchall()]


async def mark_indexed(c: Connection, v: Version) -> None:
    """embedded -> indexed: all points are in Qdrant."""
    await c.execute(
        "UPDATE versions SET status = 'indexed', indexed_at = now()"
        " WHERE tenant = %s AND document_id = %s AND version = %s AND status = 'embedded'",
        (v.tenant, v.document_id, v.version),
    )


async def go_live(c: Connection, v: Version) -> bool:
    """indexed -> live, only if no newer version is and the document was not deleted since."""
    cursor = await c.execute(
        "UPDATE documents SET live_version = %s WHERE tenant = %s AND document_id = %s"
        " AND live_version < %s AND deleted_version < %s",
        (v.version, v.tenant, v.document_id, v.version, v.version),
    )
    if cursor.rowcount != 1:
        return False
    await c.execute(
        "UPDATE versions SET status = 'live', live_at = now()"
        " WHERE tenant = %s AND document_id = %s AND version = %s AND status = 'indexed'",
        (v.tenant, v.document_id, v.version),
    )
    if v.conversation_id is None:
        await bump_generation(c, v.tenant, v.document_id)
    else:
        await bump_conversation(c, v.tenant, v.conversation_id)
    return True


async def drop_versions(c: Connection, v: Version, *, up_to: int) -> None:
    """Chunks and texts of versions up to `up_to` go; their ledger rows stay and say what happened."""
    key = (v.tenant, v.document_id, up_to)
    await c.execute("DELETE FROM chunks WHERE tenant = %s AND document_id = %s AND version <= %s", key)
    await c.execute(
        "UPDATE versions SET content = NULL, title = NULL, metadata = '{}', status = 'superseded'"
        " WHERE tenant = %s AND document_id = %s AND version <= %s AND kind <> 'deletion'"
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


async def mark_failed(c: Connection, tenant: str, document_id: str, version: int, reason: str) -> None:
    """Parked, with the reason."""
    await c.execute(
        "UPDATE pending_versions SET status = 'failed', failure = %s"
        " WHERE tenant = %s AND document_id = %s AND version = %s",
        (reason[:1000], tenant, document_id, version),
    )


# -- status and context -----------------------------------------------------------------------


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


async def generations(c: Connection, tenant: str, conversation_id: str | None) -> tuple[int, int]:
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


async def recent_turns(c: Connection, tenant: str, conversation_id: str, limit: int) -> list[Turn]:
    """The latest turns, newest first."""
    cursor = await c.execute(
        "SELECT v.document_id, v.role, v.content FROM versions v"
        " WHERE v.tenant = %s AND v.conversation_id = %s AND v.kind = 'turn' AND v.content IS NOT NULL"
        " ORDER BY v.seq DESC LIMIT %s",
        (tenant, conversation_id, limit),
    )
    return [Turn(**row) for row in await cursor.fetchall()]


async def live_chunks(c: Connection, tenant: str, hits: Sequence[tuple[str, int, int, float]]) -> list[LiveChunk]:
    """The hits of the index that are still live, with their texts: the index may be behind, the truth is here."""
    if not hits:
        return []
    ids, versions, numbers, _scores = (list(column) for column in zip(*hits, strict=True))
    cursor = await c.execute(
        "SELECT k.document_id, k.version, k.chunk, k.section, k.title, k.body, k.kind FROM live_chunks k"
        " JOIN unnest(%s::text[], %s::int[], %s::int[]) AS h(document_id, version, chunk)"
        " ON k.document_id = h.document_id AND k.version = h.version AND k.chunk = h.chunk"
        " WHERE k.tenant = %s",
        (ids, versions, numbers, tenant),
    )
    score = {(document, version, chunk): value for document, version, chunk, value in hits}
    rows = await cursor.fetchall()
    return [LiveChunk(**row, score=score[row["document_id"], row["version"], row["chunk"]]) for row in rows]


async def full_text(
    c: Connection,
    tenant: str,
    query_words: Sequence[str],
    conversation_id: str | None,
    document_ids: Sequence[str] | None,
    limit: int,
) -> list[LiveChunk]:
    """Live chunks by their words, for when vectors can not be had. Candidates are bounded before ranking."""
    if not query_words:
        return []
    cursor = await c.execute(
        "WITH q AS (SELECT string_agg(quote_literal(w), ' | ')::tsquery AS query FROM unnest(%(words)s::text[]) w),"
        " candidates AS (SELECT k.*, q.query FROM q JOIN live_chunks k ON to_tsvector('simple', k.body) @@ q.query"
        " WHERE k.tenant = %(tenant)s AND (k.conversation_id IS NULL OR k.conversation_id = %(conversation)s)"
        " AND (%(ids)s::text[] IS NULL OR k.document_id = ANY(%(ids)s) OR k.kind = 'turn')"
        " LIMIT %(candidates)s)"
        " SELECT document_id, version, chunk, section, title, body, kind,"
        " ts_rank_cd(to_tsvector('simple', body), query, 32)::float8 AS score"
        " FROM candidates ORDER BY score DESC LIMIT %(limit)s",
        {
            "words": list(query_words)[:32],
            "tenant": tenant,
            "conversation": conversation_id,
            "ids": list(document_ids) if document_ids is not None else None,
            "candidates": limit * 20,
            "limit": limit,
        },
    )
    return [LiveChunk(**row) for row in await cursor.fetchall()]


# -- operations -------------------------------------------------------------------------------


async def touch_replica(c: Connection, replica: str) -> None:
    """Leave a mark: the commit is the proof."""
    await c.execute(
        "INSERT INTO replicas VALUES (%s, now()) ON CONFLICT (replica) DO UPDATE SET seen_at = now()", (replica,)
    )


async def queue_state(c: Connection) -> dict[str, Any]:
    """Jobs by state, the age of the oldest acknowledged version that is not live, workers alive, failures."""
    cursor = await c.execute(
        "SELECT (SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo') AS todo,"
        " (SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing') AS doing,"
        " (SELECT count(*) FROM versions WHERE status = 'failed') AS failed,"
        " (SELECT coalesce(extract(epoch FROM now() - min(received_at)), 0)::float8 FROM pending_versions) AS oldest_s,"
        " (SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > now() - interval '30 s') AS workers"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row


async def forget_keys(c: Connection, hours: int) -> int:
    """Idempotency keys older than `hours`."""
    cursor = await c.execute("DELETE FROM idempotency WHERE created_at < now() - make_interval(hours => %s)", (hours,))
    return cursor.rowcount


def request_bytes(route: str, body: dict[str, Any]) -> bytes:
    """What makes two requests the same."""
    return f"{route}\n{json.dumps(body, sort_keys=True, separators=(',', ':'))}".encode()
