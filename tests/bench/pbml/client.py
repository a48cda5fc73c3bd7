"""PBML's clients and the floor's: the same requests, by the product and by bare calls of what lies below it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import aiohttp
import psycopg
from psycopg_pool import AsyncConnectionPool

from devmentor.pbml.index import point_id
from tests.bench.pbml.vectors import Chunk, cut

BUDGET = 8000
LIMIT = 48  # PBML_FETCH_CANDIDATES
EF = 256  # PBML_HNSW_EF
CHUNK_CHARS = 1000  # PBML_CHUNK_CHARS
_BATCH, _IN_FLIGHT, _AGE_S = 32, 2, 0.015  # PBML_EMBEDDING_BATCH_SIZE, _CONCURRENCY, _BATCH_AGE_MS
FLOOR = "floor"


class Pbml:
    """Requests to the API. Answers that are not what they should be are counted in `wrong`, by what they were."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session, self._url = session, url
        self._headers = {"Authorization": f"Bearer {key}"}
        self.wrong: dict[str, int] = {}

    async def ingest(self, documents: Sequence[dict[str, Any]]) -> bool:
        """Whether they were acknowledged on the quorum: one as such, several in one request."""
        if len(documents) == 1:
            status, body = await self._post("/v1/documents", documents[0])
        else:
            status, body = await self._post("/v1/documents:batch", {"documents": documents})
        return self._judge(status == 202 and body.get("durability") == "quorum", status, body)

    async def fetch(self, query: str, conversation_id: str | None = None) -> bool:
        """Whether it was answered in full."""
        asked: dict[str, Any] = {"query": query, "token_budget": BUDGET}
        if conversation_id is not None:
            asked["conversation_id"] = conversation_id
        status, body = await self._post("/v1/context", asked)
        whole = status == 200 and not body["degraded"] and bool(body["chunks"] or body["turns"])
        return self._judge(whole, status, body)

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            async with self._session.post(self._url + path, json=body, headers=self._headers) as answer:
                return answer.status, await answer.json()
        except (aiohttp.ClientError, ValueError) as error:
            return 0, {"error": {"code": type(error).__name__}}

    def _judge(self, right: bool, status: int, body: dict[str, Any]) -> bool:
        if not right:
            what = str(body.get("error", {}).get("code") or body.get("degraded_parts") or body.get("durability"))
            self.wrong[f"{status} {what}"] = self.wrong.get(f"{status} {what}", 0) + 1
        return right


class Floor:
    """Nothing but the calls that cannot be left out, as an expert would write them for this one purpose."""

    def __init__(self, session: aiohttp.ClientSession, conninfo: str, qdrant: str, engine: str) -> None:
        self._session, self._qdrant, self._engine = session, qdrant, engine
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
            conninfo, kwargs={"autocommit": True}, min_size=8, max_size=8, open=False
        )

    async def open(self) -> None:
        await self._pool.open(wait=True)
        async with self._pool.connection() as c:
            await c.execute("CREATE TABLE IF NOT EXISTS floor (id text PRIMARY KEY, body text NOT NULL)")

    async def close(self) -> None:
        await self._pool.close()

    async def collection(self) -> None:
        """With PBML's parameters; its points have no tenant, so they are all in one graph."""
        body = {
            "vectors": {"size": 384, "distance": "Cosine"},
            "shard_number": 6,
            "hnsw_config": {"m": 16, "ef_construct": 256},
        }
        await self._put(f"/collections/{FLOOR}", body)

    async def fetch(self, query: str, tenant: str = "bench") -> bool:
        """The query's embedding, one search, one SELECT of the texts."""
        [vector] = await self.embed([query])
        hits = await self.search(vector, tenant, limit=LIMIT)
        keys = [(hit["payload"]["document_id"], hit["payload"]["version"], hit["payload"]["chunk"]) for hit in hits]
        ids, versions, chunks = (list(column) for column in zip(*keys, strict=True))
        async with self._pool.connection() as c:
            cursor = await c.execute(
                "SELECT k.body FROM unnest(%s::text[], %s::int[], %s::int[]) AS h(document_id, version, chunk)"
                " JOIN chunks k ON k.tenant = %s AND k.document_id = h.document_id AND k.version = h.version"
                " AND k.chunk = h.chunk",
                (ids, versions, chunks, tenant),
            )
            return len(await cursor.fetchall()) == len(keys)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        body = {"model": "embeddings", "input": list(texts), "encoding_format": "float"}
        async with self._session.post(f"{self._engine}/v1/embeddings", json=body) as answer:
            answer.raise_for_status()
            return [each["embedding"] for each in sorted((await answer.json())["data"], key=lambda e: e["index"])]

    async def search(
        self, vector: list[float], tenant: str, *, limit: int, exact: bool = False, collection: str = "pbml"
    ) -> list[dict[str, Any]]:
        """Nearest points of the tenant's documents, by the index with PBML's beam, or by comparing all (`exact`)."""
        body = {
            "query": vector,
            "filter": {
                "must": [{"key": "tenant", "match": {"value": tenant}}],
                "should": [{"is_empty": {"key": "conversation_id"}}],
            },
            "limit": limit,
            "with_payload": ["document_id", "version", "chunk"],
            "params": {"exact": True} if exact else {"hnsw_ef": EF},
        }
        async with self._session.post(f"{self._qdrant}/collections/{collection}/points/query", json=body) as answer:
            answer.raise_for_status()
            return list((await answer.json())["result"]["points"])

    async def info(self, collection: str = "pbml") -> dict[str, Any]:
        async with self._session.get(f"{self._qdrant}/collections/{collection}") as answer:
            return dict((await answer.json())["result"])

    async def _put(self, path: str, body: dict[str, Any]) -> None:
        async with self._session.put(f"{self._qdrant}{path}", json=body, params={"wait": "true"}) as answer:
            if answer.status != 200:
                raise RuntimeError(f"Qdrant {path}: {answer.status} {(await answer.text())[:300]}")

    async def ingest(self, requests: Iterable[Sequence[Any]], concurrency: int) -> tuple[list[float], float, float]:
        """(seconds of each acknowledgement, until the last of them, until the last document is searchable).

        An INSERT of a request's documents that waits for the quorum acknowledges; chunks of many documents share
        calls of the engine, batched as PBML's batch manager batches, and each batch is one upsert.
        """
        waiting: asyncio.Queue[Chunk | None] = asyncio.Queue(4 * _BATCH)
        todo = iter(requests)
        acknowledged: list[float] = []
        begin = time.perf_counter()

        async def write() -> None:
            for documents in todo:
                start = time.perf_counter()
                async with self._pool.connection() as c:
                    if len(documents) == 1:
                        await c.execute("INSERT INTO floor VALUES (%s, %s)", (documents[0].id, documents[0].body))
                    else:
                        rows = [each.id for each in documents], [each.body for each in documents]
                        await c.execute("INSERT INTO floor SELECT * FROM unnest(%s::text[], %s::text[])", rows)
                acknowledged.append(time.perf_counter() - start)
                for document in documents:
                    for chunk in cut(document, CHUNK_CHARS)[0]:
                        await waiting.put(chunk)

        async def index(batch: list[Chunk]) -> None:
            vectors = await self.embed([chunk.embedded for chunk in batch])
            points = [
                {
                    "id": point_id(FLOOR, chunk.document.id, 1, chunk.number),
                    "vector": vector,
                    "payload": {"document_id": chunk.document.id, "version": 1, "chunk": chunk.number},
                }
                for chunk, vector in zip(batch, vectors, strict=True)
            ]
            await self._put(f"/collections/{FLOOR}/points", {"points": points})

        async def collect() -> None:
            running: set[asyncio.Task[None]] = set()
            ended = False
            while not ended:
                batch: list[Chunk] = []
                until = time.perf_counter() + 3600
                while len(batch) < _BATCH:
                    try:
                        one = await asyncio.wait_for(waiting.get(), max(0.0, until - time.perf_counter()))
                    except TimeoutError:
                        break
                    if one is None:
                        ended = True
                        break
                    until = until if batch else time.perf_counter() + _AGE_S
                    batch.append(one)
                while len(running) >= _IN_FLIGHT:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.gather(*done)
                if batch:
                    running.add(asyncio.create_task(index(batch)))
            await asyncio.gather(*running)

        collecting = asyncio.create_task(collect())
        await asyncio.gather(*(write() for _ in range(concurrency)))
        last = time.perf_counter() - begin
        await waiting.put(None)
        await collecting
        return acknowledged, last, time.perf_counter() - begin
