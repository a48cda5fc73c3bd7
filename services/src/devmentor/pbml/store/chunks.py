"""Chunks of versions with their vectors: written once, read for the index, found for a fetch."""

import array
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from devmentor.pbml.db import Connection
from devmentor.pbml.store.versions import Version


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
class Cut:
    """A version's chunks. `chunker` says what cut the text: an index is rebuilt from these, never by cutting again."""

    version: Version
    chunks: Sequence[StoredChunk]
    chunker: str


@dataclass(frozen=True, slots=True)
class LiveChunk:
    """A chunk of a live version; `start` and `end` are characters of its normalised text."""

    document_id: str
    version: int
    chunk: int
    section: str
    title: str | None
    body: str
    kind: str
    start: int
    end: int
    score: float = 0.0


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


async def save_chunks(c: Connection, given: Sequence[Cut]) -> list[bool]:
    """received -> embedded. False where another run of the job was here first: nothing is written of it then.

    At most one version of a document at a time.
    """
    cursor = await c.execute(
        "UPDATE versions SET status = 'embedded', embedded_at = now(), chunks = w.k, chunker = w.cutter, failure = NULL"
        " FROM unnest(%s::text[], %s::text[], %s::int[], %s::int[], %s::text[]) AS w(t, d, n, k, cutter)"
        " WHERE tenant = w.t AND document_id = w.d AND version = w.n AND status = 'received'"
        " RETURNING tenant, document_id, version",
        (
            [cut.version.tenant for cut in given],
            [cut.version.document_id for cut in given],
            [cut.version.version for cut in given],
            [len(cut.chunks) for cut in given],
            [cut.chunker for cut in given],
        ),
    )
    first = {(row["tenant"], row["document_id"], row["version"]) for row in await cursor.fetchall()}
    rows = [(cut.version, k) for cut in given if cut.version.key in first for k in cut.chunks]
    if rows:
        async with c.cursor().copy(
            "COPY chunks (tenant, document_id, version, chunk, conversation_id, section,"
            " start_char, end_char, body, embedding) FROM STDIN"
        ) as copy:
            for v, k in rows:
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
    return [cut.version.key in first for cut in given]


async def load_vectors(c: Connection, v: Version, after: int, limit: int) -> list[tuple[int, list[float]]]:
    """Chunk numbers above `after` and their vectors, in order."""
    cursor = await c.execute(
        "SELECT chunk, embedding FROM chunks WHERE tenant = %s AND document_id = %s AND version = %s"
        " AND chunk > %s ORDER BY chunk LIMIT %s",
        (v.tenant, v.document_id, v.version, after, limit),
    )
    return [(row["chunk"], unpack(row["embedding"])) for row in await cursor.fetchall()]


async def live_chunks(c: Connection, tenant: str, hits: Sequence[tuple[str, int, int, float]]) -> list[LiveChunk]:
    """The hits of the index that are still live, with their texts: the index may be behind, the truth is here."""
    if not hits:
        return []
    ids, versions, numbers, _scores = (list(column) for column in zip(*hits, strict=True))
    cursor = await c.execute(
        "SELECT k.document_id, k.version, k.chunk, k.section, k.title, k.body, k.kind,"
        ' k.start_char AS start, k.end_char AS "end" FROM live_chunks k'
        " JOIN unnest(%s::text[], %s::int[], %s::int[]) AS h(document_id, version, chunk)"
        " ON k.document_id = h.document_id AND k.version = h.version AND k.chunk = h.chunk"
        " WHERE k.tenant = %s",
        (ids, versions, numbers, tenant),
    )
    score = {(document, version, chunk): value for document, version, chunk, value in hits}
    rows = await cursor.fetchall()
    return [LiveChunk(**row, score=score[row["document_id"], row["version"], row["chunk"]]) for row in rows]
