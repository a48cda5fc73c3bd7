"""What a state is made of, as PostgreSQL has it: changes since a snapshot, documents, and where the log stands.

A snapshot is `pg_current_snapshot()`: every transaction is in it or not. What changed between two snapshots are the
changes whose transaction the second one sees and the first one does not; a transaction that was open at the first is
among them whenever it commits, and no open one holds up the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import DictRow

from devmentor.pbml.db import Connection
from devmentor.pbml.state.entry import Chunk, Entry, Key, Known, Live, Pinned, Said, Waiting, chunks_sha256

BEFORE_ALL = "3:3:"
"""A snapshot that sees no transaction."""

PinKey = tuple[str, str]
"""tenant, conversation id or nothing"""

_CHUNKS_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class View:
    """One transaction's view of the log.

    `lineage` names the cluster, the log in it and the timeline. `position` is the newest transaction that changed
    anything; where no older one is open still, all states at one position are alike, and `settled` says so.
    """

    snapshot: str
    xmin: int
    xmax: int
    cluster: str
    timeline: str
    pruned: int
    position: int

    @property
    def lineage(self) -> str:
        """Comparable states have the same."""
        return f"{self.cluster}/{self.timeline}"

    @property
    def settled(self) -> bool:
        """Whether `position` says exactly what is in the snapshot."""
        return self.xmin > self.position


def bounds(snapshot: str) -> tuple[int, int]:
    """(xmin, xmax) of a snapshot: all transactions below the first are in it, none from the second on."""
    xmin, xmax, _open = snapshot.split(":")
    return int(xmin), int(xmax)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed, each thing once. `whole` is False where there was more than asked for."""

    documents: list[Key]
    pins: list[PinKey]
    seqs: list[tuple[int, str]]
    whole: bool


async def steady(c: Connection) -> None:
    """The transaction sees one snapshot from now on. For its first statement."""
    await c.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


async def look(c: Connection) -> View:
    """Where the log stands."""
    cursor = await c.execute(
        "SELECT pg_current_snapshot()::text AS snapshot,"
        " (SELECT system_identifier FROM pg_control_system()) || '/' || l.id AS cluster,"
        " left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS timeline, l.pruned::text,"
        " greatest(l.newest_pruned, (SELECT xid FROM changes ORDER BY xid DESC LIMIT 1))::text AS position"
        " FROM change_log l"
    )
    row = await cursor.fetchone()
    assert row is not None
    xmin, xmax = bounds(row["snapshot"])
    return View(row["snapshot"], xmin, xmax, row["cluster"], row["timeline"], int(row["pruned"]), int(row["position"]))


async def changed(c: Connection, since: str, limit: int) -> Changes:
    """What this transaction sees and the snapshot `since` does not."""
    cursor = await c.execute(
        "SELECT tenant, document_id, conversation_id, seq FROM changes"
        " WHERE xid >= pg_snapshot_xmin(%(since)s::pg_snapshot)"
        " AND NOT pg_visible_in_snapshot(xid, %(since)s::pg_snapshot) ORDER BY xid LIMIT %(limit)s",
        {"since": since, "limit": limit + 1},
    )
    rows = await cursor.fetchall()
    return Changes(
        list({(row["tenant"], row["document_id"]): None for row in rows if row["document_id"] is not None}),
        list({(row["tenant"], row["conversation_id"]): None for row in rows if row["document_id"] is None}),
        [(row["seq"], row["tenant"]) for row in rows if row["seq"] is not None],
        len(rows) <= limit,
    )


async def sizes(c: Connection, keys: Sequence[Key]) -> dict[Key, int]:
    """How many chunks the live version of each has; not those without any."""
    cursor = await c.execute(
        "SELECT d.tenant, d.document_id, v.chunks"  # noqa: S608
        f" FROM {_WANTED} JOIN documents d USING (tenant, document_id)"
        " JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id AND v.version = d.live_version"
        " WHERE v.chunks > 0",
        {"tenants": [tenant for tenant, _ in keys], "ids": [name for _, name in keys]},
    )
    return {(row["tenant"], row["document_id"]): row["chunks"] for row in await cursor.fetchall()}


_WANTED = "unnest(%(tenants)s::text[], %(ids)s::text[]) AS h(tenant, document_id)"


async def entries(c: Connection, keys: Sequence[Key], known: Known) -> list[Entry]:
    """The documents as they are; chunks only of versions that are not `known`."""
    if not keys:
        return []
    values: dict[str, Any] = {"tenants": [tenant for tenant, _ in keys], "ids": [name for _, name in keys]}
    cursor = await c.execute(
        "SELECT v.tenant, v.document_id, v.version, v.seq, v.kind, v.conversation_id, v.title"  # noqa: S608
        f" FROM {_WANTED} JOIN documents d USING (tenant, document_id)"
        " JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id AND v.version = d.live_version"
        " WHERE d.live_version > d.deleted_version",
        values,
    )
    live = {(row["tenant"], row["document_id"]): row for row in await cursor.fetchall()}
    cursor = await c.execute(
        "SELECT v.tenant, v.document_id, v.version, v.seq, v.kind, v.conversation_id, v.role, v.title, v.content,"  # noqa: S608
        " v.status = 'failed' AS failed, v.version > d.live_version"
        " AND v.status IN ('received', 'embedded', 'indexed', 'failed') AS waiting"
        f" FROM {_WANTED} JOIN documents d USING (tenant, document_id)"
        " JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id AND v.version > d.deleted_version"
        " WHERE v.kind <> 'deletion' AND (v.kind = 'turn' OR v.version > d.live_version) ORDER BY v.version",
        values,
    )
    others: dict[Key, list[DictRow]] = {}
    for row in await cursor.fetchall():
        others.setdefault((row["tenant"], row["document_id"]), []).append(row)
    missing = [(*key, row["version"]) for key, row in live.items() if known.get(key, (0, b""))[0] != row["version"]]
    chunks = await _chunks(c, missing)
    return [
        Entry(
            *key,
            _live(live[key], chunks.get(key), known.get(key)) if key in live else None,
            [_waiting(row) for row in others.get(key, ()) if row["waiting"]],
            next((_said(row) for row in others.get(key, ()) if row["kind"] == "turn" and row["content"]), None),
        )
        for key in keys
    ]


def _live(row: DictRow, chunks: list[Chunk] | None, known: tuple[int, bytes] | None) -> Live:
    if known is not None and known[0] == row["version"]:
        digest, chunks = known[1], None
    else:
        chunks = chunks or []
        digest = chunks_sha256(chunks)
    return Live(row["version"], row["seq"], row["kind"], row["conversation_id"], row["title"], digest, chunks)


def _waiting(row: DictRow) -> Waiting:
    content = None if row["failed"] else row["content"]
    place = (row["version"], row["seq"], row["kind"], row["conversation_id"])
    return Waiting(*place, row["title"], content, row["failed"])


def _said(row: DictRow) -> Said:
    return Said(row["seq"], row["conversation_id"], row["role"], row["content"])


async def _chunks(c: Connection, wanted: Sequence[tuple[str, str, int]]) -> dict[Key, list[Chunk]]:
    if not wanted:
        return {}
    tenants, ids, versions = (list(column) for column in zip(*wanted, strict=True))
    found: dict[Key, list[Chunk]] = {}
    # Binary, or a vector would come as hexadecimal digits.
    async with c.cursor(binary=True) as cursor:
        await cursor.execute(
            "SELECT k.tenant, k.document_id, k.chunk, k.section, k.start_char, k.end_char, k.body, k.embedding"
            " FROM unnest(%s::text[], %s::text[], %s::int[]) AS h(tenant, document_id, version)"
            " JOIN chunks k USING (tenant, document_id, version) ORDER BY k.tenant, k.document_id, k.chunk",
            (tenants, ids, versions),
        )
        while rows := await cursor.fetchmany(_CHUNKS_AT_ONCE):
            for row in rows:
                found.setdefault((row["tenant"], row["document_id"]), []).append(
                    Chunk(
                        row["chunk"],
                        row["section"],
                        row["start_char"],
                        row["end_char"],
                        row["body"],
                        bytes(row["embedding"]),
                    )
                )
    return found


async def tenants(c: Connection) -> list[str]:
    """All that have or had anything, by a walk of one step a tenant."""
    cursor = await c.execute(
        "WITH RECURSIVE t AS (SELECT (SELECT min(tenant) FROM documents) AS tenant"
        " UNION ALL SELECT (SELECT min(d.tenant) FROM documents d WHERE d.tenant > t.tenant) FROM t"
        " WHERE t.tenant IS NOT NULL) SELECT tenant FROM t WHERE tenant IS NOT NULL"
    )
    return [row["tenant"] for row in await cursor.fetchall()]


async def names(c: Connection, tenant: str, after: str, limit: int, chunks: int) -> tuple[list[Key], bool]:
    """Documents of a tenant after a name, in the order of bytes, of about `chunks` chunks together; whether the end was
    reached."""
    cursor = await c.execute(
        "SELECT d.document_id, coalesce(v.chunks, 1) AS chunks FROM documents d"
        " LEFT JOIN versions v ON v.tenant = d.tenant AND v.document_id = d.document_id AND v.version = d.live_version"
        ' WHERE d.tenant = %s AND d.document_id COLLATE "C" > %s ORDER BY d.document_id COLLATE "C" LIMIT %s',
        (tenant, after, limit),
    )
    rows = await cursor.fetchall()
    taken, total = 0, 0
    while taken < len(rows) and (taken == 0 or total + rows[taken]["chunks"] <= chunks):
        total += rows[taken]["chunks"]
        taken += 1
    return [(tenant, row["document_id"]) for row in rows[:taken]], taken == len(rows) < limit


_SHA_TEXT = "sha256(convert_to(coalesce({}, ''), 'UTF8'))"
_CHUNK_ITEM = (
    "sha256(int4send(k.chunk) || int4send(k.start_char) || int4send(k.end_char) || "
    f"{_SHA_TEXT.format('k.section')} || {_SHA_TEXT.format('k.body')} || sha256(k.embedding))"
)
ITEMS = (
    f"SELECT d.document_id, sha256({_SHA_TEXT.format('d.tenant')} || {_SHA_TEXT.format('d.document_id')}"  # noqa: S608
    " || coalesce(l.part, '') || coalesce(w.part, '') || coalesce(s.part, '')) AS item"
    f" FROM {_WANTED} JOIN documents d USING (tenant, document_id)"
    " LEFT JOIN LATERAL (SELECT 'L'::bytea || int4send(v.version) || int8send(v.seq) ||"
    f" {_SHA_TEXT.format('v.kind')} || {_SHA_TEXT.format('v.conversation_id')} || {_SHA_TEXT.format('v.title')} ||"
    f" sha256(coalesce((SELECT string_agg({_CHUNK_ITEM}, ''::bytea ORDER BY k.chunk) FROM chunks k"
    " WHERE k.tenant = v.tenant AND k.document_id = v.document_id AND k.version = v.version), '')) AS part"
    " FROM versions v WHERE v.tenant = d.tenant AND v.document_id = d.document_id AND v.version = d.live_version"
    " AND d.live_version > d.deleted_version) l ON true"
    " LEFT JOIN LATERAL (SELECT string_agg(CASE v.status WHEN 'failed' THEN 'F' ELSE 'W' END::bytea"
    f" || int4send(v.version) || int8send(v.seq) || {_SHA_TEXT.format('v.title')} ||"
    f" {_SHA_TEXT.format('CASE v.status WHEN $$failed$$ THEN NULL ELSE v.content END')},"
    " ''::bytea ORDER BY v.version) AS part FROM versions v WHERE v.tenant = d.tenant AND v.document_id = d.document_id"
    " AND v.version > greatest(d.live_version, d.deleted_version) AND v.kind <> 'deletion'"
    " AND v.status IN ('received', 'embedded', 'indexed', 'failed')) w ON true"
    " LEFT JOIN LATERAL (SELECT 'S'::bytea || int8send(v.seq) ||"
    f" {_SHA_TEXT.format('v.role')} || {_SHA_TEXT.format('v.content')} AS part FROM versions v"
    " WHERE v.tenant = d.tenant AND v.document_id = d.document_id AND v.version > d.deleted_version"
    " AND v.kind = 'turn' AND v.content <> '' ORDER BY v.version LIMIT 1) s ON true"
    " WHERE coalesce(l.part, w.part, s.part) IS NOT NULL"
)


async def items(c: Connection, keys: Sequence[Key]) -> dict[Key, bytes]:
    """`entry.item` of each document that has one, computed by PostgreSQL. Keys are of one tenant."""
    if not keys:
        return {}
    tenant = keys[0][0]
    async with c.cursor(binary=True) as cursor:
        await cursor.execute(ITEMS, {"tenants": [tenant] * len(keys), "ids": [name for _, name in keys]})
        return {(tenant, row["document_id"]): bytes(row["item"]) for row in await cursor.fetchall()}


async def pins(c: Connection, wanted: Sequence[PinKey]) -> dict[PinKey, list[Pinned]]:
    """The pins of these conversations; no pins where there are none."""
    found: dict[PinKey, list[Pinned]] = {key: [] for key in wanted}
    if wanted:
        cursor = await c.execute(
            "SELECT p.* FROM unnest(%s::text[], %s::text[]) AS h(tenant, conversation_id)"
            " JOIN pins p USING (tenant, conversation_id)",
            ([tenant for tenant, _ in wanted], [name for _, name in wanted]),
        )
        for row in await cursor.fetchall():
            pin = Pinned(row["name"], row["body"], row["updated_at"].isoformat())
            found[row["tenant"], row["conversation_id"]].append(pin)
    return found


async def pinned(c: Connection) -> list[PinKey]:
    """Every conversation, and every tenant, that has pins."""
    cursor = await c.execute("SELECT DISTINCT tenant, conversation_id FROM pins")
    return [(row["tenant"], row["conversation_id"]) for row in await cursor.fetchall()]


async def seqs(c: Connection, after: int, limit: int) -> list[tuple[int, str]]:
    """Numbers of the ledger above `after`, with their tenant: watermarks that can be asked for."""
    cursor = await c.execute("SELECT seq, tenant FROM versions WHERE seq > %s ORDER BY seq LIMIT %s", (after, limit))
    return [(row["seq"], row["tenant"]) for row in await cursor.fetchall()]
