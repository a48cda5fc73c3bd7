"""The Qdrant collection: declared, filled, searched. One point a chunk, tenants apart by a payload filter."""

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx
from prometheus_client import Counter
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from devmentor.common import qdrant
from devmentor.pbml.embedder import Vector
from devmentor.pbml.settings import Settings

log = logging.getLogger(__name__)

FAILURES = Counter("pbml_index_failures", "Failed calls of a Qdrant peer", ["operation"])

T = TypeVar("T")
Hit = tuple[str, int, int, float]
"""document id, version, chunk, score"""

_NAMESPACE = uuid.UUID("6f1f6f5e-7c0b-5c53-9a86-5d2f3a1c7b11")
_UPSERT_BATCH = 256
_CREATE_S = 60
"""How long peers may take to agree on a collection, by their own clock."""
_REFUSED = (400, 422)
"""The request itself is wrong. Anything else, a key that was rotated or a missing collection say, may pass."""


class IndexUnavailable(Exception):
    """No peer answers; worth trying again."""


class CollectionDrift(Exception):
    """The collection exists and is not what is declared."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A point as the index has it: its id and the chunk that it says it is of."""

    id: str
    tenant: str
    document_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Point:
    """What is kept of a chunk in Qdrant: its vector and where its text is in PostgreSQL."""

    tenant: str
    document_id: str
    version: int
    chunk: int
    conversation_id: str | None
    vector: Vector

    @property
    def id(self) -> str:
        """Its id in Qdrant."""
        return point_id(self.tenant, self.document_id, self.version, self.chunk)


def point_id(tenant: str, document_id: str, version: int, chunk: int) -> str:
    """The same chunk always has the same id, so that a job that runs twice writes the same point twice."""
    # A separator that none of the parts can hold: ids are validated, numbers are numbers.
    return str(uuid.uuid5(_NAMESPACE, f"{tenant}\n{document_id}\n{version}\n{chunk}"))


class Index:
    """Calls go to one peer for as long as it answers, else to the next."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = settings.collection
        if not settings.qdrant_urls:
            raise ValueError("at least one Qdrant URL is needed (PBML_QDRANT_URLS)")
        key, ca, timeout_s = settings.qdrant_api_key, settings.tls_ca, settings.qdrant_timeout_s
        self._clients = [qdrant.client(url, key, ca, timeout_s) for url in settings.qdrant_urls]
        # Replicas start at different peers, so that they share the work of answering.
        self._current = random.randrange(len(self._clients))  # noqa: S311 - not a secret

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.close()

    async def _call(
        self, operation: str, call: Callable[[AsyncQdrantClient], Awaitable[T]], each_s: float | None = None
    ) -> T:
        """The first peer's answer, beginning with the one that answered last. `each_s`: at most this for each peer."""
        failures: list[str] = []
        first = self._current
        for offset in range(len(self._clients)):
            tried = (first + offset) % len(self._clients)
            try:
                async with asyncio.timeout(each_s):
                    answer = await call(self._clients[tried])
            except (ResponseHandlingException, httpx.HTTPError, OSError) as error:  # TimeoutError is an OSError
                failures.append(f"{type(error).__name__}: {error}")
            except UnexpectedResponse as error:
                if error.status_code in _REFUSED:
                    raise
                failures.append(f"status {error.status_code}: {error.content[:200]!r}")
            except asyncio.CancelledError:
                # Whoever asked has waited long enough; the next one is not to wait for the same peer again.
                self._leave(tried)
                raise
            else:
                return answer
            FAILURES.labels(operation).inc()
            self._leave(tried)
        raise IndexUnavailable(f"{operation}: {'; '.join(failures)}"[:500])

    def _leave(self, tried: int) -> None:
        """The next call begins at another peer, unless one that failed beside this one has seen to that."""
        if self._current == tried:
            self._current = (tried + 1) % len(self._clients)

    # -- data -------------------------------------------------------------------------------

    async def upsert(self, points: Sequence[Point]) -> None:
        """Write points; returns when the collection's write consistency is met and they can be found."""
        for first in range(0, len(points), _UPSERT_BATCH):
            some = points[first : first + _UPSERT_BATCH]
            # By columns: a quarter of the processor's time that a model for each point takes.
            batch = models.Batch(
                ids=[p.id for p in some],
                vectors=[p.vector for p in some],
                payloads=[
                    {
                        "tenant": p.tenant,
                        "document_id": p.document_id,
                        "version": p.version,
                        "chunk": p.chunk,
                        **({"conversation_id": p.conversation_id} if p.conversation_id is not None else {}),
                    }
                    for p in some
                ],
            )
            await self._call("upsert", partial(_upsert, collection=self._name, points=batch))

    async def remove(self, tenant: str, document_id: str, up_to_version: int) -> None:
        """Remove the points of a document's versions up to and with `up_to_version`."""
        selector = models.FilterSelector(
            filter=models.Filter(
                must=[
                    _is("tenant", tenant),
                    _is("document_id", document_id),
                    models.FieldCondition(key="version", range=models.Range(lte=up_to_version)),
                ]
            )
        )
        await self._call("remove", lambda client: client.delete(self._name, selector, wait=True))

    async def remove_documents(self, tenant: str, document_ids: Sequence[str]) -> None:
        """Remove all points of a tenant's documents, of whatever version."""
        match = models.FieldCondition(key="document_id", match=models.MatchAny(any=list(document_ids)))
        selector = models.FilterSelector(filter=models.Filter(must=[_is("tenant", tenant), match]))
        await self._call("remove", lambda client: client.delete(self._name, selector, wait=True))

    async def remove_points(self, ids: Sequence[str]) -> None:
        """Remove points by their ids."""
        selector = models.PointIdsList(points=list(ids))
        await self._call("remove", lambda client: client.delete(self._name, selector, wait=True))

    async def present(self, ids: Sequence[str]) -> set[str]:
        """Which of these points there are."""
        found = await self._call(
            "present", lambda client: client.retrieve(self._name, list(ids), with_payload=False, with_vectors=False)
        )
        return {str(point.id) for point in found}

    async def scroll(self, after: str | None, limit: int) -> tuple[list[Stored], str | None]:
        """Points in the order of their ids from `after` on, and where to go on; None at the end."""
        points, following = await self._call(
            "scroll",
            lambda client: client.scroll(
                self._name,
                offset=after,
                limit=limit,
                with_payload=["tenant", "document_id", "version"],
                with_vectors=False,
            ),
        )
        return [
            Stored(str(p.id), p.payload["tenant"], p.payload["document_id"], p.payload["version"]) for p in points
        ], (str(following) if following is not None else None)

    async def search(
        self,
        tenant: str,
        vector: Vector,
        *,
        limit: int,
        min_score: float,
        conversation_id: str | None = None,
        document_ids: Sequence[str] | None = None,
    ) -> list[Hit]:
        """The nearest chunks of a tenant's documents and, where given, of one conversation's turns."""
        document: Any = models.IsEmptyCondition(is_empty=models.PayloadField(key="conversation_id"))
        if document_ids is not None:
            document = models.Filter(
                must=[
                    document,
                    models.FieldCondition(key="document_id", match=models.MatchAny(any=list(document_ids))),
                ]
            )
        scope: list[Any] = [document]
        if conversation_id is not None:
            scope.append(_is("conversation_id", conversation_id))
        query_filter = models.Filter(must=[_is("tenant", tenant)], should=scope)
        # A peer that is gone leaves time for another one, where there is one.
        each_s = self._settings.fetch_timeout_s / 2 if len(self._clients) > 1 else None
        answer = await self._call(
            "search",
            lambda client: client.query_points(
                self._name,
                query=vector,
                query_filter=query_filter,
                limit=limit,
                score_threshold=min_score,
                with_payload=["document_id", "version", "chunk"],
                search_params=models.SearchParams(hnsw_ef=self._settings.hnsw_ef),
            ),
            each_s=each_s,
        )
        return [(p.payload["document_id"], p.payload["version"], p.payload["chunk"], p.score) for p in answer.points]

    async def count(self, tenant: str | None = None, document_id: str | None = None) -> int:
        """Points of all, of a tenant or of one of its documents, exactly."""
        must = [_is(key, value) for key, value in (("tenant", tenant), ("document_id", document_id)) if value]
        answer = await self._call(
            "count", lambda client: client.count(self._name, models.Filter(must=must), exact=True)
        )
        return int(answer.count)

    async def probe(self) -> str:
        """For readiness: the collection answers."""
        info = await self._call("probe", lambda client: client.get_collection(self._name))
        return f"{self._name}: {info.status}, {info.points_count} points"

    # -- declaration ------------------------------------------------------------------------

    async def lost(self) -> bool:
        """Whether every peer says that there is no such collection. One that does not answer may know better."""
        answers = await asyncio.gather(
            *(client.collection_exists(self._name) for client in self._clients), return_exceptions=True
        )
        return all(answer is False for answer in answers)

    async def drop(self) -> None:
        """Remove the collection with all points."""
        async with self._patiently() as patient:
            await patient._call("drop", lambda client: client.delete_collection(self._name, timeout=_CREATE_S))

    async def ensure(self) -> list[str]:
        """Create what is missing and compare the rest. Returns what was done; raises CollectionDrift.

        Under a deadline of its own: peers agree on a new collection in up to a minute, a search has seconds.
        """
        async with self._patiently() as patient:
            return await patient._ensure()

    @asynccontextmanager
    async def _patiently(self) -> AsyncIterator["Index"]:
        """This index with `collection_timeout_s` for each call, and twice that for all of them."""
        limit = self._settings.collection_timeout_s
        patient = Index(self._settings.model_copy(update={"qdrant_timeout_s": limit}))
        try:
            async with asyncio.timeout(2 * limit):
                yield patient
        except TimeoutError:
            raise IndexUnavailable(f"collection {self._name}: not done within {2 * limit:.0f} s") from None
        finally:
            await patient.close()

    async def _ensure(self) -> list[str]:
        done: list[str] = []
        if not await self._call("exists", lambda client: client.collection_exists(self._name)):
            done.append(await self._create())
        info = await self._call("info", lambda client: client.get_collection(self._name))
        differences = self._differences(info.config.params, info.config.hnsw_config, await self._peers())
        if differences:
            raise CollectionDrift(f"collection {self._name}: " + "; ".join(differences))
        for field, schema in _PAYLOAD_INDEXES.items():
            if field not in info.payload_schema:
                create = partial(_create_payload_index, collection=self._name, field=field, schema=schema)
                await self._call("payload index", create)
                done.append(f"payload index on {field}")
        return done

    async def _create(self) -> str:
        s = self._settings
        peers = await self._peers()
        factor = min(s.collection_replication_factor, peers)
        try:
            await self._call(
                "create",
                lambda client: client.create_collection(
                    self._name,
                    vectors_config=models.VectorParams(
                        size=s.embedding_dimensions, distance=models.Distance.COSINE, on_disk=False
                    ),
                    shard_number=s.collection_shards,
                    replication_factor=factor,
                    write_consistency_factor=min(s.collection_write_consistency, factor),
                    hnsw_config=models.HnswConfigDiff(
                        m=s.hnsw_m, payload_m=s.hnsw_payload_m, ef_construct=s.hnsw_ef_construct
                    ),
                    timeout=_CREATE_S,
                ),
            )
        except (IndexUnavailable, UnexpectedResponse):
            # The first peer may have made it and only its answer been lost; the next one then refuses to.
            if not await self._call("exists", lambda client: client.collection_exists(self._name)):
                raise
        return f"collection {self._name} with {s.collection_shards} shards, {factor} replicas each"

    def _differences(self, params: Any, hnsw: Any, peers: int) -> list[str]:
        s = self._settings
        # Never more replicas than peers: Qdrant would place what it can and call the rest missing.
        factor = min(s.collection_replication_factor, peers)
        compared = [
            ("vector size", params.vectors.size, s.embedding_dimensions),
            ("distance", str(params.vectors.distance.value), "Cosine"),
            ("shard number", params.shard_number, s.collection_shards),
            ("replication factor", params.replication_factor, factor),
            ("write consistency factor", params.write_consistency_factor, min(s.collection_write_consistency, factor)),
            ("hnsw m", hnsw.m, s.hnsw_m),
            ("hnsw payload_m", hnsw.payload_m, s.hnsw_payload_m),
            ("hnsw ef_construct", hnsw.ef_construct, s.hnsw_ef_construct),
        ]
        return [f"{what} is {found}, declared is {wanted}" for what, found, wanted in compared if found != wanted]

    async def _peers(self) -> int:
        """Peers of the cluster; 1 where Qdrant runs alone."""
        status = await self._call("cluster", lambda client: client.cluster_status())
        return max(1, len(getattr(status, "peers", None) or {}))


_PAYLOAD_INDEXES: dict[str, Any] = {
    "tenant": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    "document_id": models.PayloadSchemaType.KEYWORD,
    "conversation_id": models.PayloadSchemaType.KEYWORD,
}


def _is(key: str, value: str) -> Any:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


async def _upsert(client: AsyncQdrantClient, collection: str, points: Any) -> None:
    await client.upsert(collection, points, wait=True)


async def _create_payload_index(client: AsyncQdrantClient, collection: str, field: str, schema: Any) -> None:
    await client.create_payload_index(collection, field, schema, wait=True)
