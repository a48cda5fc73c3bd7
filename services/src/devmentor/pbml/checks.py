"""What /ready asks, in the API and in the worker."""

from devmentor.common.health import ANSWER_WITHIN_S, Check
from devmentor.pbml.db import Database
from devmentor.pbml.embedder import Embedder
from devmentor.pbml.index import Index
from devmentor.pbml.settings import Settings
from devmentor.pbml.spool.spool import Spool
from devmentor.pbml.store import operations

_FAILOVER_S = 10.0
"""Twice what a failover of PostgreSQL may take."""


def dependencies(
    settings: Settings,
    database: Database,
    index: Index,
    embedder: Embedder,
    name: str,
    spool: Spool | None = None,
    *,
    fetches_without: bool = False,
) -> list[Check]:
    """PostgreSQL by a write that reaches the quorum; the collection; the embeddings endpoint.

    Only PostgreSQL is required: nothing can be acknowledged or read without it. With the index or the
    embedder away a fetch still answers from PostgreSQL and says so, and since all replicas share
    Qdrant, taking them out of the load balancer for its sake would turn a degraded tier into a dead one.
    For the same reason PostgreSQL is not required where a spool can take the writes, or a local state answers fetches,
    and may be away for as long as a failover takes.
    """

    async def postgres() -> str:
        committed = await database.write(lambda c: operations.touch_replica(c, name), timeout_s=ANSWER_WITHIN_S)
        return f"write committed, durability {committed.durability}"

    async def embeddings() -> str:
        vectors = await embedder.embed(["ready?"])
        return f"{settings.embedding_model}, {len(vectors[0])} dimensions"

    async def writes() -> str:
        if spool is None or not spool.usable or spool.size >= spool.max_bytes:
            return await postgres()
        return f"{spool.waiting} entries, {spool.size} of {spool.max_bytes} bytes, {spool.parked} parked"

    return [
        Check("postgres", postgres, required=spool is None and not fetches_without, grace_s=_FAILOVER_S),
        *([] if spool is None else [Check("spool", writes)]),
        Check("qdrant", index.probe, required=False),
        Check("embedder", embeddings, required=False),
    ]
