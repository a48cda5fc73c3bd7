"""From an acknowledged version to a live one: chunk, embed, index, go live, remove what it replaces.

Every step can be repeated: a run that finds the version half way goes on from where the ledger says it is.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import Counter, Histogram

from devmentor.pbml.db import Connection, Database
from devmentor.pbml.embedder import Vector
from devmentor.pbml.index import Index, Point
from devmentor.pbml.preprocess import embedding_input, prepare
from devmentor.pbml.store import versions
from devmentor.pbml.store.chunks import StoredChunk, load_vectors, save_chunks
from devmentor.pbml.store.versions import Version

STAGE_SECONDS = Histogram(
    "pbml_stage_seconds",
    "Time of a version in each stage of the pipeline",
    ["stage"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
VERSIONS = Counter("pbml_versions", "Versions that left the pipeline", ["kind", "result"])
CHUNKS = Counter("pbml_chunks_indexed", "Chunks written to the index")

_PAGE = 512

Embed = Callable[[Sequence[str]], Awaitable[list[Vector]]]


class Pipeline:
    """One version at a time; many may run side by side and share batches of the embedder."""

    def __init__(self, database: Database, index: Index, embed: Embed, chunk_chars: int, job_timeout_s: float) -> None:
        self._db = database
        self._index = index
        self._embed = embed
        self._chunk_chars = chunk_chars
        self._timeout_s = job_timeout_s

    async def run(self, tenant: str, document_id: str, version: int) -> None:
        """Bring a version as far as it can go."""
        async with asyncio.timeout(self._timeout_s):
            async with self._db.read() as connection:
                v = await versions.load_version(connection, tenant, document_id, version)
            if v is None or v.status in ("superseded", "failed"):
                return
            if v.kind == "deletion":
                await self._delete(v)
            else:
                await self._advance(v)

    async def _advance(self, v: Version) -> None:
        vectors: list[tuple[int, Vector]] | None = None
        if v.status == "received":
            async with self._db.read() as connection:
                late = await versions.overtaken(connection, v)
            if late:
                await self._retire(v, v.version, "superseded")
                return
            vectors = await self._embed_chunks(v)
            if vectors is None:
                return
        live = v.status == "live"
        if not live:
            await self._fill_index(v, vectors)
            live = await self._publish(v)
        await self._retire(v, v.version - 1 if live else v.version, "live" if live else "superseded")

    async def _embed_chunks(self, v: Version) -> list[tuple[int, Vector]] | None:
        """received -> embedded. None where another run of the same job was faster."""
        start = time.monotonic()
        text = v.content or ""
        prepared = await asyncio.to_thread(prepare, v.document_id, v.title, text, self._chunk_chars)
        chunks = prepared.chunks
        _observe("preprocess", start)
        start = time.monotonic()
        stored: list[StoredChunk] = []
        for first in range(0, len(chunks), _PAGE):
            page = chunks[first : first + _PAGE]
            vectors = await self._embed([embedding_input(v.title, k.section, k.text) for k in page])
            stored.extend(
                StoredChunk(k.number, k.section, k.start, k.end, k.text, vector)
                for k, vector in zip(page, vectors, strict=True)
            )
        _observe("embed", start)
        saved = await self._db.write(lambda c: save_chunks(c, v, stored, prepared.chunker), timeout_s=60)
        return [(k.chunk, k.vector) for k in stored] if saved.value else None

    async def _fill_index(self, v: Version, vectors: list[tuple[int, Vector]] | None) -> None:
        start = time.monotonic()
        if vectors is not None:
            await self._upsert(v, vectors)
        else:
            after = -1
            while True:
                async with self._db.read(timeout_s=30) as connection:
                    page = await load_vectors(connection, v, after, _PAGE)
                if not page:
                    break
                await self._upsert(v, page)
                after = page[-1][0]
        _observe("index", start)

    async def _upsert(self, v: Version, vectors: Sequence[tuple[int, Vector]]) -> None:
        await self._index.upsert(
            [Point(v.tenant, v.document_id, v.version, number, v.conversation_id, vector) for number, vector in vectors]
        )
        CHUNKS.inc(len(vectors))

    async def _publish(self, v: Version) -> bool:
        """embedded -> indexed -> live. False where a newer version or a deletion was faster."""
        start = time.monotonic()

        async def work(c: Connection) -> bool:
            await versions.mark_indexed(c, v)
            return await versions.go_live(c, v)

        live = (await self._db.write(work)).value
        _observe("publish", start)
        return live

    async def _retire(self, v: Version, up_to: int, result: str) -> None:
        """Remove versions up to `up_to`: from the index first, since its points are found through the ledger."""
        if up_to > 0:
            start = time.monotonic()
            await self._index.remove(v.tenant, v.document_id, up_to)
            await self._db.write(lambda c: versions.drop_versions(c, v, up_to=up_to), timeout_s=60)
            _observe("retire", start)
        VERSIONS.labels(v.kind, result).inc()

    async def _delete(self, v: Version) -> None:
        if v.status == "live":
            return
        await self._index.remove(v.tenant, v.document_id, v.version)

        async def work(c: Connection) -> None:
            await versions.drop_versions(c, v, up_to=v.version)
            await versions.finish_deletion(c, v)

        await self._db.write(work, timeout_s=60)
        VERSIONS.labels(v.kind, "live").inc()


def _observe(stage: str, start: float) -> None:
    STAGE_SECONDS.labels(stage).observe(time.monotonic() - start)
