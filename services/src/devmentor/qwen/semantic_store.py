"""The semantic cache's points in Qdrant: a question's vector, its partition, and the answer."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from devmentor.common import qdrant
from devmentor.qwen.semantic import Candidate, Match
from devmentor.qwen.settings import QwenSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
_NAMESPACE = uuid.UUID("2f0c8e53-7d7e-5b0f-9a1c-6e1b1d8f4a20")
_NEAREST = 5  # points looked at: the nearest may be one that marks tell apart
_SWEEP_BATCH = 1000
_CALL_S = 10.0
_INDEXES: dict[str, Any] = {
    "partition": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    "tenant": models.PayloadSchemaType.KEYWORD,
    "stored_at": models.PayloadSchemaType.FLOAT,
}


class SemanticUnavailableError(Exception):
    """Qdrant gave no answer."""


class SemanticStore:
    """Calls go to one peer for as long as it answers, else to the next one, the next time."""

    def __init__(self, settings: QwenSettings) -> None:
        self._settings = settings
        self._name = settings.semantic_collection
        key, ca = settings.qdrant_api_key, settings.tls_ca
        self._clients = [qdrant.client(url, key, ca, _CALL_S) for url in settings.qdrant_urls]
        self._current = 0

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    async def search(self, wanted: Candidate, vector: Sequence[float], threshold: float) -> list[Match]:
        """Answers of the partition within their TTL, the nearest question first."""
        fresh = models.Range(gte=time.time() - self._settings.semantic_ttl_s)
        found = await self._call(
            lambda client: client.query_points(
                self._name,
                query=list(vector),
                query_filter=models.Filter(
                    must=[
                        _is("partition", wanted.partition),
                        models.FieldCondition(key="stored_at", range=fresh),
                    ]
                ),
                limit=_NEAREST,
                score_threshold=threshold,
                with_payload=True,
            )
        )
        return [
            Match(p.payload["answer"].encode(), p.payload["context"], p.payload["question"], p.score)
            for p in found.points
        ]

    async def put(self, asked: Candidate, vector: Sequence[float], payload: bytes, context: str) -> None:
        """Keep an answer; the same question again replaces it."""
        point = models.PointStruct(
            id=str(uuid.uuid5(_NAMESPACE, f"{asked.partition}\n{asked.question}")),
            vector=list(vector),
            payload={
                "tenant": asked.tenant,
                "partition": asked.partition,
                "question": asked.question,
                "answer": payload.decode("utf-8", "replace"),
                "context": context,
                "stored_at": time.time(),
            },
        )
        await self._call(lambda client: client.upsert(self._name, [point], wait=False))

    async def forget(self, tenant: str) -> None:
        """Remove a tenant's answers."""
        selector = models.FilterSelector(filter=models.Filter(must=[_is("tenant", tenant)]))
        await self._call(lambda client: client.delete(self._name, selector, wait=True))

    async def sweep(self) -> int:
        """Remove what is older than the TTL, and the oldest beyond the bound. Returns how many of the latter."""
        old = models.FieldCondition(key="stored_at", range=models.Range(lt=time.time() - self._settings.semantic_ttl_s))
        expired = models.FilterSelector(filter=models.Filter(must=[old]))
        await self._call(lambda client: client.delete(self._name, expired, wait=True))
        count = (await self._call(lambda client: client.count(self._name, exact=True))).count
        excess = min(_SWEEP_BATCH, count - self._settings.semantic_max_answers)
        if excess <= 0:
            return 0
        oldest, _ = await self._call(
            lambda client: client.scroll(self._name, order_by="stored_at", limit=excess, with_payload=False)
        )
        ids = models.PointIdsList(points=[point.id for point in oldest])
        await self._call(lambda client: client.delete(self._name, ids, wait=True))
        return len(oldest)

    async def ensure(self, dimensions: int) -> list[str]:
        """Create the collection and its indexes where missing; what was done. An answer more or less does not matter,
        so one replica's acknowledgement is enough."""
        done = []
        if not await self._call(lambda client: client.collection_exists(self._name)):
            status = await self._call(lambda client: client.cluster_status())
            peers = max(1, len(getattr(status, "peers", None) or {}))
            await self._call(
                lambda client: client.create_collection(
                    self._name,
                    vectors_config=models.VectorParams(size=dimensions, distance=models.Distance.COSINE),
                    shard_number=peers,
                    replication_factor=min(2, peers),
                    write_consistency_factor=1,
                    timeout=60,
                )
            )
            done.append(f"collection {self._name}")
        known = (await self._call(lambda client: client.get_collection(self._name))).payload_schema
        for field, schema in _INDEXES.items():
            if field not in known:
                await self._call(partial(_index, name=self._name, field=field, schema=schema))
                done.append(f"payload index on {field}")
        return done

    async def _call(self, call: Callable[[AsyncQdrantClient], Awaitable[T]]) -> T:
        try:
            return await call(self._clients[self._current])
        except BaseException as error:
            self._current = (self._current + 1) % len(self._clients)
            if isinstance(error, ResponseHandlingException | UnexpectedResponse | httpx.HTTPError | OSError):
                raise SemanticUnavailableError(f"{type(error).__name__}: {error}"[:300]) from error
            raise  # a deadline's cancellation, too, is a reason to ask another peer the next time


async def _index(client: AsyncQdrantClient, *, name: str, field: str, schema: Any) -> None:
    await client.create_payload_index(name, field, schema, wait=True)


def _is(key: str, value: str) -> Any:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))
