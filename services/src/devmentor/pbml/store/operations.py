"""For the operator: a replica's mark, and the state of the queue."""

from typing import Any

from devmentor.pbml.db import Connection


async def touch_replica(c: Connection, replica: str) -> None:
    """Leave a mark: the commit is the proof."""
    await c.execute(
        "INSERT INTO replicas VALUES (%s, now()) ON CONFLICT (replica) DO UPDATE SET seen_at = now()", (replica,)
    )


async def queue_state(c: Connection) -> dict[str, Any]:
    """Jobs by state, the age of the oldest acknowledged version that is not live, workers alive, failures."""
    cursor = await c.execute(
        "SELECT (SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo') AS todo,"
        " (SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing') AS doing,"
        " (SELECT count(*) FROM versions WHERE status = 'failed') AS failed,"
        " (SELECT coalesce(extract(epoch FROM now() - min(received_at)), 0)::float8 FROM pending_versions) AS oldest_s,"
        " (SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > now() - interval '30 s') AS workers"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row
