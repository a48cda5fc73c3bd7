"""Which conversations are to be folded into summaries, who is at one, and how that went: a row a conversation.

Rows are made by following the ledger, so an ingest writes none. A claim keeps two workers from the same conversation;
what makes a summary right is checked again where it is written (`store.summaries`).
"""

from dataclasses import dataclass

from devmentor.pbml.db import Connection


@dataclass(frozen=True, slots=True)
class Fold:
    """A conversation that its holder may fold. `seen_seq`: the newest turn that was known of when it was claimed."""

    tenant: str
    conversation_id: str
    folded_seq: int
    seen_seq: int
    failed_runs: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Conversations: to be looked at, and given up."""

    due: int
    parked: int


async def follow(c: Connection, after: int, rows: int, settled_s: float, more_than: int) -> int:
    """Note the conversations of up to `rows` rows of the ledger after a seq, of those that have `more_than` so many
    turns; the seq to go on after.

    It stops before rows that are younger than `settled_s` seconds: one with a lower seq may still be on its way to its
    commit. One that takes longer is noted with the next turn of its conversation.
    """
    cursor = await c.execute(
        "SELECT seq, tenant, conversation_id, received_at < now() - make_interval(secs => %s) AS settled"
        " FROM versions WHERE seq > %s ORDER BY seq LIMIT %s",
        (settled_s, after, rows),
    )
    newest: dict[tuple[str, str], int] = {}
    for row in await cursor.fetchall():
        if not row["settled"]:
            break
        after = row["seq"]
        if row["conversation_id"] is not None:
            newest[row["tenant"], row["conversation_id"]] = after
    # In the order of their key, as everybody who takes several.
    for (tenant, conversation_id), seq in sorted(newest.items()):
        await c.execute(
            "INSERT INTO folds (tenant, conversation_id, seen_seq, due_at)"
            " SELECT %(tenant)s, %(conversation)s, %(seq)s, now() WHERE (SELECT count(*) FROM (SELECT 1 FROM versions"
            " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s AND kind = 'turn'"
            " AND content IS NOT NULL LIMIT %(enough)s) AS said) >= %(enough)s"
            " ON CONFLICT (tenant, conversation_id) DO UPDATE SET seen_seq = excluded.seen_seq,"
            " due_at = CASE WHEN folds.parked_at IS NULL THEN coalesce(folds.due_at, now()) END",
            {"tenant": tenant, "conversation": conversation_id, "seq": seq, "enough": more_than + 1},
        )
    return after


async def claim(c: Connection, holder: str, seconds: float) -> Fold | None:
    """The conversation that has been due longest, for `seconds`; None where none is. Claimed ones are passed over."""
    cursor = await c.execute(
        "SELECT tenant, conversation_id FROM folds WHERE due_at <= now() AND (held_until IS NULL OR held_until < now())"
        " ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED"
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    cursor = await c.execute(
        "UPDATE folds SET holder = %s, held_until = now() + make_interval(secs => %s)"
        " WHERE tenant = %s AND conversation_id = %s"
        " RETURNING tenant, conversation_id, folded_seq, seen_seq, failed_runs",
        (holder, seconds, row["tenant"], row["conversation_id"]),
    )
    claimed = await cursor.fetchone()
    return Fold(**claimed) if claimed is not None else None


async def hold(c: Connection, fold: Fold, holder: str) -> bool:
    """Lock the row until the commit. False where the claim is over: taken by another one, or broken by a deletion."""
    cursor = await c.execute(
        "SELECT holder = %s AS ours FROM folds WHERE tenant = %s AND conversation_id = %s FOR UPDATE",
        (holder, fold.tenant, fold.conversation_id),
    )
    row = await cursor.fetchone()
    return row is not None and bool(row["ours"])


async def advance(c: Connection, fold: Fold, folded_seq: int) -> None:
    """Turns up to here are in summaries."""
    await c.execute(
        "UPDATE folds SET folded_seq = %s WHERE tenant = %s AND conversation_id = %s",
        (folded_seq, fold.tenant, fold.conversation_id),
    )


async def release(c: Connection, fold: Fold, holder: str, *, again_s: float | None, worked: bool) -> None:
    """Give it back, to be looked at in `again_s` seconds; None: not before its next turn. `worked` forgives failures.

    A turn that came since the claim makes it due at once.
    """
    await c.execute(
        "UPDATE folds SET holder = NULL, held_until = NULL,"
        " due_at = CASE WHEN seen_seq > %(seen)s THEN now()"
        " WHEN %(again)s::float8 IS NOT NULL THEN now() + make_interval(secs => %(again)s::float8) END,"
        " failed_runs = CASE WHEN %(worked)s THEN 0 ELSE failed_runs END,"
        " failure = CASE WHEN %(worked)s THEN NULL ELSE failure END"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s AND holder = %(holder)s",
        {
            "seen": fold.seen_seq,
            "again": again_s,
            "worked": worked,
            "tenant": fold.tenant,
            "conversation": fold.conversation_id,
            "holder": holder,
        },
    )


async def fail(c: Connection, fold: Fold, holder: str, reason: str, *, again_s: float, most: int) -> bool:
    """Count a failure and give it back. True where it is parked with this one, the `most`th."""
    parked = fold.failed_runs + 1 >= most
    cursor = await c.execute(
        "UPDATE folds SET holder = NULL, held_until = NULL, failed_runs = %(runs)s, failure = %(reason)s,"
        " due_at = CASE WHEN %(parked)s THEN NULL ELSE now() + make_interval(secs => %(again)s) END,"
        " parked_at = CASE WHEN %(parked)s THEN now() END"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s AND holder = %(holder)s",
        {
            "runs": fold.failed_runs + 1,
            "reason": reason[:1000],
            "parked": parked,
            "again": again_s,
            "tenant": fold.tenant,
            "conversation": fold.conversation_id,
            "holder": holder,
        },
    )
    return parked and cursor.rowcount == 1


async def begin_again(c: Connection, tenant: str, conversation_id: str, *, folded_seq: int | None = None) -> None:
    """Its material changed: whoever is at it stops, and it is looked at anew, parked or not."""
    await c.execute(
        "UPDATE folds SET holder = NULL, held_until = NULL, due_at = now(), failed_runs = 0, failure = NULL,"
        " parked_at = NULL, folded_seq = coalesce(%s::bigint, folded_seq) WHERE tenant = %s AND conversation_id = %s",
        (folded_seq, tenant, conversation_id),
    )


async def counts(c: Connection) -> Counts:
    """How much is to be looked at, and how much was given up."""
    cursor = await c.execute(
        "SELECT (SELECT count(*) FROM folds WHERE due_at <= now()) AS due,"
        " (SELECT count(*) FROM folds WHERE parked_at IS NOT NULL) AS parked"
    )
    row = await cursor.fetchone()
    assert row is not None
    return Counts(**row)


async def parked(c: Connection, limit: int) -> list[tuple[str, str, str]]:
    """(tenant, conversation, reason) of what was given up, oldest first."""
    cursor = await c.execute(
        "SELECT tenant, conversation_id, failure FROM folds WHERE parked_at IS NOT NULL ORDER BY parked_at LIMIT %s",
        (limit,),
    )
    return [(row["tenant"], row["conversation_id"], row["failure"]) for row in await cursor.fetchall()]


async def retry(c: Connection, tenant: str | None, conversation_id: str | None) -> int:
    """Take up again what was given up: one conversation, a tenant's or all. How many."""
    cursor = await c.execute(
        "UPDATE folds SET due_at = now(), failed_runs = 0, parked_at = NULL WHERE parked_at IS NOT NULL"
        " AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
        " AND (%(conversation)s::text IS NULL OR conversation_id = %(conversation)s)",
        {"tenant": tenant, "conversation": conversation_id},
    )
    return cursor.rowcount
