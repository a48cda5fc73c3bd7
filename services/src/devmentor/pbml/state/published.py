"""What replicas tell each other, in PostgreSQL: how far each is, its digests; and what of the log nobody needs."""

from psycopg.types.json import Jsonb

from devmentor.pbml.db import Connection
from devmentor.pbml.state.source import View, bounds

PRUNE_BATCH = 10_000
"""Most rows that one call of `prune` removes."""


async def publish(c: Connection, replica: str, view: View, since: str, digests: dict[str, str] | None) -> None:
    """Say what a replica has: up to the snapshot `since`, and its digests where they can be compared."""
    await c.execute(
        "INSERT INTO replica_states AS r (replica, lineage, confirmed, position, digests, seen_at)"
        " VALUES (%(replica)s, %(lineage)s, %(confirmed)s::text::xid8, %(position)s::text::xid8, %(digests)s, now())"
        " ON CONFLICT (replica) DO UPDATE SET lineage = excluded.lineage, confirmed = excluded.confirmed,"
        " position = excluded.position, digests = excluded.digests, seen_at = excluded.seen_at",
        {
            "replica": replica,
            "lineage": view.lineage,
            "confirmed": str(bounds(since)[0]),
            "position": str(view.position) if digests is not None else None,
            "digests": Jsonb(digests or {}),
        },
    )


async def others(c: Connection, replica: str, view: View) -> dict[str, dict[str, str]]:
    """Digests by tenant of the other replicas that are at the same position."""
    cursor = await c.execute(
        "SELECT replica, digests FROM replica_states"
        " WHERE replica <> %s AND lineage = %s AND position = %s::text::xid8",
        (replica, view.lineage, str(view.position)),
    )
    return {row["replica"]: row["digests"] for row in await cursor.fetchall()}


async def prune(c: Connection, kept_s: float, most_s: float) -> int:
    """Forget changes that every replica has, and those older than `most_s` whoever lacks them; how many.

    None younger than `kept_s` goes: after a failover replicas read all of them once more.
    """
    cursor = await c.execute(
        "WITH boundary AS (SELECT least(pg_snapshot_xmin(pg_current_snapshot()),"
        " (SELECT r.confirmed FROM replica_states r WHERE r.seen_at > now() - make_interval(secs => %(most)s)"
        " ORDER BY r.confirmed LIMIT 1)) AS xid),"
        " old AS (SELECT c.ctid FROM changes c, boundary b WHERE c.xid < b.xid"
        " AND c.at < now() - make_interval(secs => %(kept)s) ORDER BY c.xid LIMIT %(batch)s),"
        " gone AS (DELETE FROM changes WHERE ctid IN (SELECT ctid FROM old) RETURNING xid)"
        " UPDATE change_log SET pruned = greatest(pruned, (SELECT xid FROM boundary)),"
        " newest_pruned = greatest(newest_pruned, (SELECT xid FROM gone ORDER BY xid DESC LIMIT 1))"
        " WHERE EXISTS (SELECT FROM gone) RETURNING (SELECT count(*) FROM gone) AS gone",
        {"kept": kept_s, "most": most_s, "batch": PRUNE_BATCH},
    )
    row = await cursor.fetchone()
    return int(row["gone"]) if row is not None else 0
