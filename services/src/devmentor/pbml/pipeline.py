"""From an acknowledged version to a live one: chunk, embed, index, go live, remove what it replaces.

Every step can be repeated: a run that finds the version half way goes on from where the ledger says it is.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import psycopg
from prometheus_client import Counter, Histogram

from devmentor.pbml.batch import BatchManager
from devmentor.pbml.db import Connection, Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import Vector
from devmentor.pbml.index import Index, IndexUnavailable, Point
from devmentor.pbml.preprocess import embedding_input, prepare
from devmentor.pbml.store import versions
from devmentor.pbml.store.chunks import Cut, StoredChunk, load_vectors, save_chunks
from devmentor.pbml.store.versions import Found, Key, Version

STAGE_SECONDS = Histogram(
    "pbml_stage_seconds",
    "Time of a version in each stage of the pipeline",
    ["stage"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
VERSIONS = Counter("pbml_versions", "Versions that left the pipeline", ["kind", "result"])
CHUNKS = Counter("pbml_chunks_indexed", "Chunks written to the index")

_PAGE = 512
_TOGETHER = 64
_SMALL_CHARS = 4 * 1024
_LARGE_BYTES = 256 * 1024
_LARGE_AT_A_TIME = 4
_LOOKS = 4

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Connection, Sequence[T]], Awaitable[list[R]]]
Embed = Callable[[Sequence[str]], Awaitable[list[Vector]]]


class _RowHeld(Exception):
    """A transaction for many documents met a row that is locked."""


class Pipeline:
    """One version at a time; many may run side by side, and what they ask for at the same moment is one call.

    A commit on the quorum, a statement and a call of the index cost nearly the same for one document as for twenty.
    """

    def __init__(self, database: Database, index: Index, embed: Embed, chunk_chars: int, job_timeout_s: float) -> None:
        self._db = database
        self._index = index
        self._embed = embed
        self._chunk_chars = chunk_chars
        self._timeout_s = job_timeout_s
        # Their texts, chunks and vectors are in memory.
        self._large = asyncio.Semaphore(_LARGE_AT_A_TIME)
        self._load = BatchManager("load", self._load_all, own_fault=_own_fault, max_size=_TOGETHER)
        self._save = BatchManager("save", self._save_all, own_fault=_own_fault, max_size=_TOGETHER, in_flight=2)
        self._upsert = BatchManager("upsert", self._upsert_all, own_fault=_own_fault, max_size=_TOGETHER, in_flight=2)
        self._publish = BatchManager(
            "publish", self._publish_all, own_fault=_own_fault, max_size=_TOGETHER, in_flight=2
        )

    async def close(self) -> None:
        """After the last run."""
        await asyncio.gather(*(each.close() for each in (self._load, self._save, self._upsert, self._publish)))

    async def run(self, tenant: str, document_id: str, version: int) -> None:
        """Bring a version as far as it can go."""
        key = (tenant, document_id, version)
        [found] = await self._load.submit([key])
        if found is None or not found.large:
            await self._bring(key, found)
            return
        async with self._large:
            await self._bring(key, await self._load_alone(key))

    async def _bring(self, key: Key, found: Found | None) -> None:
        async with asyncio.timeout(self._timeout_s):
            for _ in range(_LOOKS):
                if found is None or found.version.status in ("superseded", "failed"):
                    return
                if found.version.kind == "deletion":
                    await self._delete(found.version)
                    return
                if await self._advance(found):
                    return
                found = await self._load_alone(key)
            raise RuntimeError(f"{_LOOKS} times another run had embedded it, and the ledger never said so")

    async def _advance(self, found: Found) -> bool:
        """False where another run of the same job was faster: then the ledger says how to go on."""
        v = found.version
        vectors: list[tuple[int, Vector]] | None = None
        if v.status == "received":
            if found.late:
                await self._retire(v, v.version, "superseded")
                return True
            vectors = await self._embed_chunks(found)
            if vectors is None:
                return False
        live: bool | None = v.status == "live"
        if not live:
            await self._fill_index(found, vectors)
            start = time.monotonic()
            [live] = await self._publish.submit([v])
            _observe("publish", start)
        if live is not None:
            await self._retire(v, v.version - 1 if live else v.version, "live" if live else "superseded")
        return True

    async def _load_all(self, keys: Sequence[Key]) -> list[Found | None]:
        async with self._db.read() as connection:
            return await versions.load_versions(connection, keys, _LARGE_BYTES, large_texts=False)

    async def _load_alone(self, key: Key) -> Found | None:
        async with self._db.read(timeout_s=30) as connection:
            [found] = await versions.load_versions(connection, [key], _LARGE_BYTES, large_texts=True)
            return found

    async def _embed_chunks(self, found: Found) -> list[tuple[int, Vector]] | None:
        """received -> embedded. None where another run of the same job was faster."""
        v = found.version
        start = time.monotonic()
        text = v.content or ""
        if len(text) <= _SMALL_CHARS:  # a thread's start costs more
            prepared = prepare(v.document_id, v.title, text, self._chunk_chars)
        else:
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
        cut = [Cut(v, stored, prepared.chunker)]
        # A large one would hold up those that share its call.
        [saved] = await (self._save_all(cut) if found.large else self._save.submit(cut))
        return [(k.chunk, k.vector) for k in stored] if saved else None

    async def _save_all(self, given: Sequence[Cut]) -> list[bool]:
        return await self._write_apart(given, lambda cut: cut.version, save_chunks, 60)

    async def _fill_index(self, found: Found, vectors: list[tuple[int, Vector]] | None) -> None:
        v = found.version
        write = self._upsert_all if found.large else self._upsert.submit
        start = time.monotonic()
        if vectors is not None:
            await write([_points(v, vectors)])
        else:
            after = -1
            while True:
                async with self._db.read(timeout_s=30) as connection:
                    page = await load_vectors(connection, v, after, _PAGE)
                if not page:
                    break
                await write([_points(v, page)])
                after = page[-1][0]
        _observe("index", start)

    async def _upsert_all(self, given: Sequence[list[Point]]) -> list[None]:
        points = [point for each in given for point in each]
        await self._index.upsert(points)
        CHUNKS.inc(len(points))
        return [None] * len(given)

    async def _publish_all(self, given: Sequence[Version]) -> list[bool | None]:
        """embedded -> indexed -> live: as `versions.go_live` says."""

        async def work(c: Connection, some: Sequence[Version]) -> list[bool | None]:
            await versions.mark_indexed(c, some)
            return await versions.go_live(c, some)

        return await self._write_apart(given, lambda v: v, work, None)

    async def _write_apart(
        self, given: Sequence[T], version_of: Callable[[T], Version], work: Work[T, R], alone_s: float | None
    ) -> list[R]:
        """Write all in as few transactions as have no document twice, in the order in which they were given.

        `alone_s`: the time of one alone; None is the database's own.
        """
        results: dict[int, R] = {}
        while left := [place for place in range(len(given)) if place not in results]:
            turn: dict[tuple[str, str], int] = {}
            for place in left:
                v = version_of(given[place])
                turn.setdefault((v.tenant, v.document_id), place)
            places = [turn[document] for document in sorted(turn)]
            some = [given[place] for place in places]
            results |= zip(places, await self._write(work, some, alone_s), strict=True)
        return [results[place] for place in range(len(given))]

    async def _write(self, work: Work[T, R], some: Sequence[T], alone_s: float | None) -> list[R]:
        if len(some) == 1:
            return (await self._db.write(lambda c: work(c, some), timeout_s=alone_s)).value

        async def together(c: Connection) -> list[R]:
            # A row that somebody else holds for long is one document's trouble.
            await c.execute("SELECT set_config('lock_timeout', '1s', true)")
            try:
                return await work(c, some)
            except psycopg.errors.LockNotAvailable as error:
                raise _RowHeld(str(error)) from error

        return (await self._db.write(together, timeout_s=60)).value

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


def _points(v: Version, vectors: Sequence[tuple[int, Vector]]) -> list[Point]:
    return [Point(v.tenant, v.document_id, v.version, chunk, v.conversation_id, vector) for chunk, vector in vectors]


def _own_fault(error: Exception) -> bool:
    """Whether one document may be to blame; what is away is away for all."""
    return not isinstance(error, DatabaseUnavailable | OutcomeUnknown | IndexUnavailable | TimeoutError)


def _observe(stage: str, start: float) -> None:
    STAGE_SECONDS.labels(stage).observe(time.monotonic() - start)
