"""Summaries of a conversation's older turns: a tree whose shape stays, whose texts come and go.

A node of level 0 stands for a range of turns, one of level n for a range of nodes of level n - 1. What is `shown` has a
text and no ancestor with one, so that shown nodes never say a turn twice. Deleting a turn takes the texts of the nodes
above it away, at once and in the deletion's transaction; a worker makes them again.

Whoever changes a conversation's summaries locks its row in `conversations` first, as deletions of its turns do:
either a summary sees the deletion, or the deletion sees the summary.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from devmentor.pbml.db import Connection
from devmentor.pbml.store import folds, generations
from devmentor.pbml.store.folds import Fold

MAX_LEVEL = 7
_NO_WATERMARK = 2**63 - 1

Key = tuple[str, str, int, int]
"""tenant, conversation, level, first_seq"""

FIRST: Key = ("", "", -1, 0)
"""Before every summary."""


class Overtaken(Exception):
    """What a summary was made of changed meanwhile, or its claim is over: nothing was written."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary as readers get it. Seqs are those of the first and the last turn it stands for."""

    level: int
    first_seq: int
    last_seq: int
    turns: int
    body: str
    model: str | None
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Range:
    """Where a summary stands."""

    level: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Part:
    """What a summary is made of: a turn (`role` is set), or a summary of the level below. `text` may be its beginning
    alone, of `chars` characters in all; `digest` is of the whole.
    """

    first_seq: int
    last_seq: int
    turns: int
    role: str | None
    text: str
    chars: int
    digest: bytes


def digest_of(parts: Iterable[Part]) -> bytes:
    """Equal only for the same parts with the same texts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{part.first_seq} {part.last_seq} {part.role} {part.digest.hex()}\n".encode())
    return whole.digest()


async def shown(c: Connection, tenant: str, conversation_id: str, limit: int) -> list[Summary]:
    """What stands for the older turns: the highest level first, of each the newest first."""
    cursor = await c.execute(
        "SELECT level, first_seq, last_seq, turns, body, model, made_at FROM summaries"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s"
        " AND shown ORDER BY level DESC, last_seq DESC LIMIT %(limit)s",
        {"tenant": tenant, "conversation": conversation_id, "limit": limit},
    )
    return [Summary(**row) for row in await cursor.fetchall()]


async def stale(c: Connection, fold: Fold) -> Range | None:
    """One that is to be made again, the lowest level first: those above are made of it."""
    cursor = await c.execute(
        "SELECT level, first_seq, last_seq FROM summaries"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s"
        " AND body IS NULL ORDER BY level, first_seq LIMIT 1",
        _named(fold),
    )
    row = await cursor.fetchone()
    return Range(**row) if row is not None else None


async def full_level(c: Connection, fold: Fold, most: int) -> int | None:
    """The lowest level with `most` summaries or more that are part of none above."""
    cursor = await c.execute(
        "SELECT level FROM summaries"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s AND parent_seq IS NULL AND level < %(max)s"
        " GROUP BY level HAVING count(*) >= %(most)s ORDER BY level LIMIT 1",
        {**_named(fold), "max": MAX_LEVEL, "most": most},
    )
    row = await cursor.fetchone()
    return int(row["level"]) if row is not None else None


async def oldest(c: Connection, fold: Fold, level: int, number: int) -> Range:
    """Where the first `number` summaries of a level stand that are part of none above."""
    cursor = await c.execute(
        "SELECT min(first_seq) AS first_seq, max(last_seq) AS last_seq FROM (SELECT first_seq, last_seq FROM summaries"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s"
        " AND level = %(level)s AND parent_seq IS NULL ORDER BY first_seq LIMIT %(number)s) AS firsts",
        {**_named(fold), "level": level, "number": number},
    )
    row = await cursor.fetchone()
    assert row is not None
    return Range(level + 1, **row)


async def recent_from(c: Connection, fold: Fold, keep: int) -> int | None:
    """The seq of the `keep`th newest turn: what is older may be folded. None where there are not so many."""
    if keep == 0:
        return _NO_WATERMARK
    cursor = await c.execute(
        "SELECT v.seq FROM versions v"
        " JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id AND d.deleted_version < v.version"
        " WHERE (v.tenant, v.conversation_id, v.seq) > (%(tenant)s, %(conversation)s, 0)"
        " AND (v.tenant, v.conversation_id, v.seq) < (%(tenant)s, %(conversation)s, %(no_watermark)s)"
        " AND v.kind = 'turn' AND v.content IS NOT NULL"
        " ORDER BY v.tenant DESC, v.conversation_id DESC, v.seq DESC OFFSET %(offset)s LIMIT 1",
        {**_named(fold), "no_watermark": _NO_WATERMARK, "offset": keep - 1},
    )
    row = await cursor.fetchone()
    return int(row["seq"]) if row is not None else None


async def turns(c: Connection, fold: Fold, first: int, before: int, limit: int | None, chars: int) -> list[Part]:
    """Turns with first <= seq < before that were not deleted, oldest first, each with at most `chars` of its text."""
    cursor = await c.execute(
        "SELECT v.seq AS first_seq, v.seq AS last_seq, 1 AS turns, v.role, left(v.content, %(chars)s) AS text,"
        " length(v.content) AS chars, sha256(convert_to(v.content, 'UTF8')) AS digest FROM versions v"
        " JOIN documents d ON d.tenant = v.tenant AND d.document_id = v.document_id AND d.deleted_version < v.version"
        " WHERE (v.tenant, v.conversation_id, v.seq) >= (%(tenant)s, %(conversation)s, %(first)s)"
        " AND (v.tenant, v.conversation_id, v.seq) < (%(tenant)s, %(conversation)s, %(before)s)"
        " AND v.kind = 'turn' AND v.content IS NOT NULL"
        " ORDER BY v.tenant, v.conversation_id, v.seq LIMIT %(limit)s",
        {**_named(fold), "first": first, "before": before, "limit": limit, "chars": chars},
    )
    return [Part(**row) for row in await cursor.fetchall()]


async def parts(c: Connection, fold: Fold, where: Range, chars: int) -> list[Part]:
    """What a summary there is to be made of, oldest first."""
    if where.level == 0:
        return await turns(c, fold, where.first_seq, where.last_seq + 1, None, chars)
    cursor = await c.execute(
        "SELECT first_seq, last_seq, turns, NULL AS role, coalesce(body, '') AS text,"
        " length(coalesce(body, '')) AS chars, sha256(convert_to(coalesce(body, ''), 'UTF8')) AS digest"
        " FROM summaries"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s"
        " AND level = %(level)s AND first_seq BETWEEN %(first)s AND %(last)s"
        " ORDER BY first_seq",
        {**_named(fold), "level": where.level - 1, "first": where.first_seq, "last": where.last_seq},
    )
    return [Part(**row) for row in await cursor.fetchall()]


async def write(
    c: Connection, fold: Fold, holder: str, where: Range, sources: Sequence[Part], body: str, model: str | None
) -> None:
    """Put a summary in its place. Raises Overtaken where its sources are not what it was made of any more.

    An empty `body` says that nothing is left of what it stood for.
    """
    # Before anything is looked at: deletions of this conversation's turns wait for this row, or this waits for them.
    await generations.bump_conversation(c, fold.tenant, fold.conversation_id)
    if not await folds.hold(c, fold, holder):
        raise Overtaken("the claim is over")
    digest = digest_of(sources)
    if digest_of(await parts(c, fold, where, 0)) != digest:
        raise Overtaken("what it was made of changed")
    await c.execute(
        "INSERT INTO summaries (tenant, conversation_id, level, first_seq, last_seq, turns, body, shown,"
        " sources, model)"
        " VALUES (%(tenant)s, %(conversation)s, %(level)s, %(first)s, %(last)s, %(turns)s, %(body)s, %(shown)s,"
        " %(sources)s, %(model)s) ON CONFLICT (tenant, conversation_id, level, first_seq) DO UPDATE SET"
        " turns = excluded.turns, body = excluded.body, shown = excluded.shown, sources = excluded.sources,"
        " model = excluded.model, made_at = now()",
        {
            **_named(fold),
            "level": where.level,
            "first": where.first_seq,
            "last": where.last_seq,
            "turns": sum(part.turns for part in sources),
            "body": body,
            "shown": body != "",
            "sources": digest,
            "model": model,
        },
    )
    if where.level > 0:
        await c.execute(
            "UPDATE summaries SET parent_seq = %(first)s, shown = false"
            " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s AND level = %(level)s"
            " AND first_seq BETWEEN %(first)s AND %(last)s",
            {**_named(fold), "level": where.level - 1, "first": where.first_seq, "last": where.last_seq},
        )
    elif where.last_seq > fold.folded_seq:
        await folds.advance(c, fold, where.last_seq)


async def withdraw(c: Connection, tenant: str, conversation_id: str, seq: int) -> int:
    """Take away the texts of all summaries that stand for a turn; how many. Their other parts are shown instead.

    The caller has the conversation's row.
    """
    named = {"tenant": tenant, "conversation": conversation_id}
    cursor = await c.execute(
        "UPDATE summaries SET body = NULL, shown = false, sources = NULL"
        " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s"
        " AND first_seq <= %(seq)s AND last_seq >= %(seq)s AND body IS NOT NULL"
        " RETURNING level, first_seq, last_seq",
        {**named, "seq": seq},
    )
    gone = [Range(**row) for row in await cursor.fetchall()]
    for where in gone:
        await c.execute(
            "UPDATE summaries SET shown = true"
            " WHERE tenant = %(tenant)s AND conversation_id = %(conversation)s AND level = %(level)s"
            " AND first_seq BETWEEN %(first)s AND %(last)s AND body <> ''",
            {**named, "level": where.level - 1, "first": where.first_seq, "last": where.last_seq},
        )
    if gone:
        await folds.begin_again(c, tenant, conversation_id)
    return len(gone)


async def withdraw_if(c: Connection, fold: Fold, where: Range, differs: Callable[[Connection], Awaitable[bool]]) -> int:
    """`withdraw` a summary, and those made of it, that still `differs` from its sources once nobody can change them."""
    await generations.bump_conversation(c, fold.tenant, fold.conversation_id)
    if not await differs(c):
        return 0
    return await withdraw(c, fold.tenant, fold.conversation_id, where.first_seq)


async def remove_conversation(c: Connection, tenant: str, conversation_id: str) -> None:
    """All summaries of a conversation, with the conversation. The caller has its row."""
    await c.execute("DELETE FROM summaries WHERE tenant = %s AND conversation_id = %s", (tenant, conversation_id))
    await folds.begin_again(c, tenant, conversation_id, folded_seq=0)


async def remove_all(c: Connection, tenant: str) -> None:
    """All summaries of a tenant, with the tenant. The caller has the rows of its conversations."""
    await c.execute("DELETE FROM summaries WHERE tenant = %s", (tenant,))
    await c.execute("DELETE FROM folds WHERE tenant = %s", (tenant,))


async def page(c: Connection, after: Key, limit: int) -> list[tuple[Key, int, bytes]]:
    """Summaries that have a text, in the order of their key: key, last_seq and digest of sources."""
    cursor = await c.execute(
        "SELECT tenant, conversation_id, level, first_seq, last_seq, sources FROM summaries"
        " WHERE (tenant, conversation_id, level, first_seq) > (%s, %s, %s, %s) AND body IS NOT NULL"
        " ORDER BY tenant, conversation_id, level, first_seq LIMIT %s",
        (*after, limit),
    )
    return [
        ((row["tenant"], row["conversation_id"], row["level"], row["first_seq"]), row["last_seq"], row["sources"])
        for row in await cursor.fetchall()
    ]


async def levels(c: Connection) -> list[dict[str, int]]:
    """How many there are of each level, and how many of those are to be made again."""
    cursor = await c.execute(
        "SELECT level, count(*) AS summaries, count(*) FILTER (WHERE body IS NULL) AS stale FROM summaries"
        " GROUP BY level ORDER BY level"
    )
    return await cursor.fetchall()


async def conversations(c: Connection, tenant: str) -> list[str]:
    """Those of a tenant that were looked at for summaries."""
    cursor = await c.execute("SELECT conversation_id FROM folds WHERE tenant = %s ORDER BY conversation_id", (tenant,))
    return [row["conversation_id"] for row in await cursor.fetchall()]


def _named(fold: Fold) -> dict[str, object]:
    return {"tenant": fold.tenant, "conversation": fold.conversation_id}
