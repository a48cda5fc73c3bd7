"""Who does a piece of maintenance, until when, and how far it is: a row of `maintenance` a task.

A lease keeps two from doing the same work. Nothing depends on it for being right: all of this can be done twice.
"""

from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from devmentor.pbml.db import Connection


@dataclass(frozen=True, slots=True)
class Task:
    """A task's row. `held_s`: for how long its holder still has it, not above 0 where nobody does."""

    state: dict[str, Any]
    incomplete: bool
    holder: str | None
    held_s: float


async def claim(c: Connection, task: str, holder: str, seconds: float) -> Task | None:
    """The task for `seconds`, with how far it is; None where another one has it."""
    cursor = await c.execute(
        "UPDATE maintenance SET holder = %s, held_until = now() + make_interval(secs => %s)"
        " WHERE task = %s AND (holder IS NULL OR holder = %s OR held_until < now())"
        " RETURNING state, incomplete, holder",
        (holder, seconds, task, holder),
    )
    row = await cursor.fetchone()
    return Task(**row, held_s=seconds) if row is not None else None


async def keep(c: Connection, task: str, holder: str, state: dict[str, Any], seconds: float) -> bool:
    """Write how far it is and go on holding it. False where it was taken over meanwhile: stop."""
    cursor = await c.execute(
        "UPDATE maintenance SET state = %s, held_until = now() + make_interval(secs => %s)"
        " WHERE task = %s AND holder = %s",
        (Jsonb(state), seconds, task, holder),
    )
    return cursor.rowcount == 1


async def release(c: Connection, task: str, holder: str) -> None:
    """Let another one have it at once."""
    await c.execute("UPDATE maintenance SET holder = NULL WHERE task = %s AND holder = %s", (task, holder))


async def look(c: Connection, task: str) -> Task:
    """The task, for whoever wants to know."""
    cursor = await c.execute(
        "SELECT state, incomplete, holder, coalesce(extract(epoch FROM held_until - now()), 0)::float8 AS held_s"
        " FROM maintenance WHERE task = %s",
        (task,),
    )
    row = await cursor.fetchone()
    assert row is not None
    return Task(**row)


async def index_incomplete(c: Connection) -> bool:
    """Whether the index lacks what is live, so that a fetch must not rely on it."""
    cursor = await c.execute("SELECT incomplete FROM maintenance WHERE task = 'rebuild'")
    row = await cursor.fetchone()
    return row is not None and bool(row["incomplete"])


async def want_rebuild(c: Connection, state: dict[str, Any], *, incomplete: bool) -> None:
    """Leave a rebuild to be done from its beginning by whoever takes it; one under way loses its lease.

    `incomplete` can only be set here: that the index is whole again is for `finish_rebuild` to say.
    """
    await c.execute(
        "UPDATE maintenance SET state = %s, holder = NULL, incomplete = incomplete OR %s WHERE task = 'rebuild'",
        (Jsonb(state), incomplete),
    )


async def finish_rebuild(c: Connection, holder: str, state: dict[str, Any]) -> bool:
    """The index has everything; False where the lease was lost, which may mean that it was lost again."""
    cursor = await c.execute(
        "UPDATE maintenance SET state = %s, holder = NULL, incomplete = false WHERE task = 'rebuild' AND holder = %s",
        (Jsonb(state), holder),
    )
    return cursor.rowcount == 1
