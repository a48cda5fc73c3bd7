"""A version on its way: received, embedded, indexed, live; or superseded, or failed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from devmentor.pbml.db import Connection
from devmentor.pbml.store import generations

Key = tuple[str, str, int]
"""Tenant, document id, version."""


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

    @property
    def key(self) -> Key:
        """Which version it is."""
        return (self.tenant, self.document_id, self.version)


@dataclass(frozen=True, slots=True)
class Found:
    """A version; `late`: a newer one is live or its document was deleted after it; `large`: by its text's length."""

    version: Version
    late: bool
    large: bool


async def load_versions(
    c: Connection, keys: Sequence[Key], large_bytes: int, *, large_texts: bool
) -> list[Found | None]:
    """Versions as the pipeline finds them, in the order of their keys; those above `large_bytes` without their text
    where `large_texts` does not ask for it."""
    cursor = await c.execute(
        "SELECT v.tenant, v.document_id, v.version, v.kind, v.conversation_id, v.title,"
        " CASE WHEN %s OR v.content_bytes <= %s THEN v.content END AS content, v.status, v.content_bytes > %s AS large,"
        " greatest(d.live_version, d.deleted_version) > v.version AS late"
        " FROM unnest(%s::text[], %s::text[], %s::int[]) AS w(tenant, document_id, version)"
        " JOIN versions v ON v.tenant = w.tenant AND v.document_id = w.document_id AND v.version = w.version"
        " JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id",
        (large_texts, large_bytes, large_bytes, *_columns(keys)),
    )
    found = {}
    for row in await cursor.fetchall():
        late, large = bool(row.pop("late")), bool(row.pop("large"))
        v = Version(**row)
        found[v.key] = Found(v, late, large)
    return [found.get(key) for key in keys]


async def mark_indexed(c: Connection, given: Sequence[Version]) -> None:
    """embedded -> indexed: all points are in Qdrant."""
    await c.execute(
        "UPDATE versions SET status = 'indexed', indexed_at = now()"
        " FROM unnest(%s::text[], %s::text[], %s::int[]) AS w(t, d, n)"
        " WHERE tenant = w.t AND document_id = w.d AND version = w.n AND status = 'embedded'",
        _columns(v.key for v in given),
    )


async def go_live(c: Connection, given: Sequence[Version]) -> list[bool | None]:
    """indexed -> live, each only if no newer version of its document is and that was not deleted since.

    At most one version of a document at a time. True where the version is live now, also by another run of the same
    job; False where it was overtaken; None where it is not indexed: it was given up meanwhile.
    """
    cursor = await c.execute(
        "UPDATE documents SET live_version = w.n FROM unnest(%s::text[], %s::text[], %s::int[]) AS w(t, d, n)"
        " WHERE tenant = w.t AND document_id = w.d AND live_version < w.n AND deleted_version < w.n"
        " AND EXISTS (SELECT 1 FROM versions v WHERE v.tenant = w.t AND v.document_id = w.d AND v.version = w.n"
        " AND v.status = 'indexed') RETURNING tenant, document_id, live_version",
        _columns(v.key for v in given),
    )
    new = {(row["tenant"], row["document_id"], row["live_version"]) for row in await cursor.fetchall()}
    if new:
        await c.execute(
            "UPDATE versions SET status = 'live', live_at = now()"
            " FROM unnest(%s::text[], %s::text[], %s::int[]) AS w(t, d, n)"
            " WHERE tenant = w.t AND document_id = w.d AND version = w.n AND status = 'indexed'",
            _columns(sorted(new)),
        )
    went = [v for v in given if v.key in new]
    await generations.bump_documents(c, {(v.tenant, v.document_id) for v in went if v.conversation_id is None})
    conversations: dict[str, set[str]] = {}
    for v in went:
        if v.conversation_id is not None:
            conversations.setdefault(v.tenant, set()).add(v.conversation_id)
    for tenant, ids in sorted(conversations.items()):
        await generations.bump_conversations(c, tenant, ids)
    return [True if v.key in new else await _settled(c, v) for v in given]


async def _settled(c: Connection, v: Version) -> bool | None:
    """Whether a version that did not go live now is live (True) or was overtaken (False)."""
    cursor = await c.execute(
        "SELECT live_version, deleted_version FROM documents WHERE tenant = %s AND document_id = %s",
        (v.tenant, v.document_id),
    )
    row = await cursor.fetchone()
    if row is None or max(row["live_version"], row["deleted_version"]) > v.version:
        return False
    return True if row["live_version"] == v.version > row["deleted_version"] else None


async def drop_versions(c: Connection, v: Version, *, up_to: int) -> None:
    """Chunks and texts of versions up to `up_to` go; their ledger rows stay and say what happened.

    What readers are served is never dropped, whatever `up_to` says.
    """
    cursor = await c.execute(
        "SELECT live_version FROM documents WHERE tenant = %s AND document_id = %s AND live_version > deleted_version",
        (v.tenant, v.document_id),
    )
    row = await cursor.fetchone()
    key = (v.tenant, v.document_id, up_to, row["live_version"] if row is not None else 0)
    await c.execute(
        "DELETE FROM chunks WHERE tenant = %s AND document_id = %s AND version <= %s AND version <> %s", key
    )
    await c.execute(
        "UPDATE versions SET content = NULL, title = NULL, metadata = '{}', status = 'superseded'"
        " WHERE tenant = %s AND document_id = %s AND version <= %s AND version <> %s AND kind <> 'deletion'"
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


async def count_failure(
    c: Connection, tenant: str, document_id: str, version: int, reason: str, max_runs: int
) -> str | None:
    """A run failed by the version's own fault. After `max_runs` of them it is parked, with the reason.

    The version's kind where it is given up, None where it is to be tried again.
    """
    cursor = await c.execute(
        "UPDATE versions SET failed_runs = failed_runs + 1"
        " WHERE tenant = %s AND document_id = %s AND version = %s RETURNING kind, failed_runs",
        (tenant, document_id, version),
    )
    row = await cursor.fetchone()
    if row is None or row["failed_runs"] < max_runs:
        return None
    await c.execute(
        "UPDATE pending_versions SET status = 'failed', failure = %s"
        " WHERE tenant = %s AND document_id = %s AND version = %s",
        (reason[:1000], tenant, document_id, version),
    )
    kind: str = row["kind"]
    return kind


async def revive(c: Connection, tenant: str, document_id: str) -> tuple[int, int] | None:
    """failed -> where it was, for the newest version: its number and seq. None where that has not failed.

    Chunks that are in the ledger already are not made again: writing them twice is an error.
    """
    cursor = await c.execute(
        "UPDATE versions SET status = CASE WHEN embedded_at IS NULL THEN 'received' ELSE 'embedded' END,"
        " failure = NULL, failed_runs = 0"
        " WHERE tenant = %s AND document_id = %s AND status = 'failed' AND content IS NOT NULL AND version ="
        " (SELECT d.latest_version FROM documents d WHERE d.tenant = versions.tenant"
        " AND d.document_id = versions.document_id)"
        " RETURNING version, seq",
        (tenant, document_id),
    )
    row = await cursor.fetchone()
    return (row["version"], row["seq"]) if row is not None else None


async def failed(c: Connection, tenant: str | None, limit: int) -> list[tuple[str, str]]:
    """(tenant, document id) of newest versions that were given up, oldest first."""
    cursor = await c.execute(
        "SELECT v.tenant, v.document_id FROM versions v JOIN documents d ON d.tenant = v.tenant"
        " AND d.document_id = v.document_id AND d.latest_version = v.version"
        " WHERE v.status = 'failed' AND (%s::text IS NULL OR v.tenant = %s) ORDER BY v.tenant, v.seq LIMIT %s",
        (tenant, tenant, limit),
    )
    return [(row["tenant"], row["document_id"]) for row in await cursor.fetchall()]


def _columns(keys: Iterable[Key]) -> tuple[list[str], list[str], list[int]]:
    tenants, ids, numbers = [], [], []
    for tenant, document_id, number in keys:
        tenants.append(tenant)
        ids.append(document_id)
        numbers.append(number)
    return tenants, ids, numbers
