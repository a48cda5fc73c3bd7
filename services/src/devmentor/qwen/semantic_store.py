"""The semantic cache's points in Qdrant: a question's vector, its partition, and the answer."""

import asyncio
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
from devmentor.qwen.semantic import Answer, Candidate, Match
from devmentor.qwen.settings import QwenSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
_NAMESPACE = uuid.UUID("2f0c8e53-7d7e-5b0f-9a1c-6e1b1d8f4a20")
_NEAREST = 5  # points looked at: the nearest may be one that marks tell apart
_SWEEP_BATCH = 1000
_CALL_S = 10.0
_FORGET_S = 8.0  # of a peer
_INDEXES: dict[str, Any] = {
    "partition": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    "tenant": models.PayloadSchemaType.KEYWORD,
    "model": models.PayloadSchemaType.KEYWORD,
    "generation": models.PayloadSchemaType.INTEGER,
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

    async def search(self, wanted: Candidate, vector: Sequence[float], threshold: float, floor: int) -> list[Match]:
        """Answers of the partition within their TTL and of no lower generation, the nearest question first."""
        fresh = models.Range(gte=time.time() - self._settings.semantic_ttl_s)
        found = await self._call(
            lambda client: client.query_points(
                self._name,
                query=list(vector),
                query_filter=models.Filter(
                    must=[
                        _is("partition", wanted.partition),
                        models.FieldCondition(key="stored_at", range=fresh),
                        models.FieldCondition(key="generation", range=models.Range(gte=floor)),
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

    async def put(self, asked: Candidate, vector: Sequence[float], answer: Answer) -> None:
        """Keep an answer; the same question again replaces it. It is there when this returns, for a purge to find."""
        point = models.PointStruct(
            id=_id(asked),
            vector=list(vector),
            payload={
                "tenant": asked.tenant,
                "model": asked.model,
                "generation": answer.generation,
                "partition": asked.partition,
                "question": asked.question,
                "answer": answer.payload.decode("utf-8", "replace"),
                "context": answer.context,
                "stored_at": time.time(),
            },
        )
        await self._call(lambda client: client.upsert(self._name, [point], wait=True))

    async def remove(self, asked: Candidate) -> None:
        """Remove the answer to a question."""
        selector = models.PointIdsList(points=[_id(asked)])
        await self._call(lambda client: client.delete(self._name, selector, wait=True))

    async def forget(self, scope: str, generation: int) -> int:
        """Remove what a purge's scope covers but for what is of its generation or later; how many that were.

        Each peer is tried once. Raises SemanticUnavailableError.
        """
        covered = _covered(scope, generation)

        async def count_and_delete(client: AsyncQdrantClient) -> int:
            async with asyncio.timeout(_FORGET_S):
                counted = await client.count(self._name, count_filter=covered, exact=True)
                await client.delete(self._name, models.FilterSelector(filter=covered), wait=True)
            return int(counted.count)

        problems = []
        for _ in self._clients:
            try:
                return await self._call(count_and_delete)
            except SemanticUnavailableError as error:
                problems.append(str(error))
        raise SemanticUnavailableError(f"Qdrant, collection {self._name}: {'; '.join(problems)}"[:500])

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


def _id(asked: Candidate) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{asked.partition}\n{asked.question}"))


def _covered(scope: str, generation: int) -> Any:
    """The filter of a purge. Points of a release that kept no generation are older than any."""
    tenant, model = scope.split(":")
    named = {"tenant": tenant, "model": model}
    return models.Filter(
        must=[_is(key, value) for key, value in named.items() if value != "*"],
        must_not=[models.FieldCondition(key="generation", range=models.Range(gte=generation))],
    )


def _is(key: str, value: str) -> Any:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))
