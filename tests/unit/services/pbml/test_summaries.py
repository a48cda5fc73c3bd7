"""Summaries on a real PostgreSQL, made by a pretended engine: the tree, deletions, what a fetch serves."""

import asyncio
import random
import re
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import psycopg
import pytest
from summary_world import prepared_postgres, world

from devmentor.pbml import schema
from devmentor.pbml.context import ContextService
from devmentor.pbml.models import ContextRequest
from devmentor.pbml.store import expiry, folds, removal, summaries
from devmentor.pbml.store.acceptance import accept_deletion
from devmentor.pbml.store.summaries import Overtaken
from devmentor.pbml.tokens import ByteTokenCounter


@pytest.fixture(scope="module")
def conninfo():
    with prepared_postgres() as made:
        yield made


@pytest.fixture
async def w(conninfo):
    async with world(conninfo) as made:
        yield made


class NoIndex:
    """An embedder that works and an index that is empty."""

    async def embed(self, texts):
        return [[1.0, 0.0] for _ in texts]

    async def search(self, *_where, **_how):
        return []


async def fetch(w, conversation="c", budget=10_000, **settings):
    service = ContextService(w.settings_with(fetch_turns=4, **settings), w.db, NoIndex(), NoIndex(), ByteTokenCounter())
    return await service.fetch("t", ContextRequest(query="words", token_budget=budget, conversation_id=conversation))


def summaries_of(body) -> list[dict]:
    return [chunk for chunk in body["chunks"] if chunk["source"] == "summary"]


async def delete(w, turn: int) -> None:
    await w.db.write(lambda c: accept_deletion(c, "t", f"~turn/c/{turn}"))


# -- the tree ---------------------------------------------------------------------------------------------------------


async def test_older_turns_are_folded_level_by_level_and_recent_ones_are_left_by_a_pretended_engine(w):
    await w.say("c", 44)
    await w.folder.turn()
    # 40 older turns are 10 summaries of 4; of each level the two oldest of four are folded.
    assert await w.shown() == [(2, 0, 15), (1, 16, 23), (1, 24, 31), (0, 32, 35), (0, 36, 39)]
    rows = await w.all()
    assert {row["turns"] for row in rows if row["level"] == 2} == {16}
    assert all(a["last_seq"] < b["first_seq"] for a, b in pairwise(r for r in rows if r["level"] == 0))
    assert not any("turn number 40 " in asked for asked in w.engine.asked)
    assert w.engine.asked[0].count("turn number") == 4
    assert "summary 1" in "".join(w.engine.asked), "a fold is of summaries"
    again = len(w.engine.asked)
    await w.folder.turn()
    assert len(w.engine.asked) == again, "nothing new, nothing to do"


async def test_new_turns_go_on_where_the_last_summary_ended_and_few_of_them_wait_for_a_pretended_engine(w):
    await w.say("c", 8)
    await w.folder.turn()
    assert await w.shown() == [(0, 0, 3)]
    await w.say("c", 3, first=8)
    await w.folder.turn()
    assert await w.shown() == [(0, 0, 3)], "three turns fill no summary"
    await w.say("c", 1, first=11)
    await w.folder.turn()
    assert await w.shown() == [(0, 0, 3), (0, 4, 7)]


async def test_two_workers_make_each_summary_once_with_a_pretended_engine(w):
    for name in ("a", "b", "c", "d"):
        await w.say(name, 24)
    other = w.worker("two")
    await other._engine.open()

    async def slow():
        await asyncio.sleep(0.02)
        return "said"

    w.engine.answer = slow
    try:
        for _ in range(3):
            await asyncio.gather(w.folder.turn(), other.turn())
    finally:
        await other._engine.close()
    rows = await w.rows("SELECT conversation_id, count(*) AS n FROM summaries GROUP BY 1 ORDER BY 1")
    assert [row["conversation_id"] for row in rows] == ["a", "b", "c", "d"]
    assert sum(row["n"] for row in rows) == len(w.engine.asked)


async def test_a_claimed_conversation_is_not_given_again_until_its_time_is_over(w):
    await w.say("c", 8)
    await w.folder._follow()
    first = (await w.db.write(lambda c: folds.claim(c, "one", 60))).value
    assert first is not None
    assert (await w.db.write(lambda c: folds.claim(c, "two", 60))).value is None
    await w.run("UPDATE folds SET held_until = now() - interval '1 second'")
    assert (await w.db.write(lambda c: folds.claim(c, "two", 60))).value is not None


async def test_a_turn_that_comes_while_a_conversation_is_looked_at_makes_it_due_again(w):
    await w.say("c", 8)
    await w.folder._follow()
    fold = (await w.db.write(lambda c: folds.claim(c, "one", 60))).value
    await w.say("c", 1, first=8)
    await w.folder._follow()
    await w.db.write(lambda c: folds.release(c, fold, "one", again_s=None, worked=False))
    assert (await w.rows("SELECT due_at FROM folds"))[0]["due_at"] is not None


async def test_a_conversation_without_older_turns_is_not_even_noted(w):
    await w.say("short", 4)
    await w.folder.turn()
    assert await w.rows("SELECT * FROM folds") == []
    assert (await w.rows("SELECT state FROM maintenance WHERE task = 'summaries'"))[0]["state"]["seq"] == 4


# -- what a fetch serves ----------------------------------------------------------------------------------------------


async def test_a_fetch_serves_summaries_with_their_provenance_made_by_a_pretended_engine(w):
    await w.say("c", 44)
    before = await fetch(w)
    await w.folder.turn()
    after = await fetch(w)
    assert summaries_of(before) == []
    assert before["context_version"] != after["context_version"]
    found = summaries_of(after)
    assert [chunk["summary"]["level"] for chunk in found] == [2, 1, 1, 0, 0]
    assert found[0]["summary"]["first_turn"] == "pg:1"
    assert found[0]["summary"]["turns"] == 16
    assert found[0]["summary"]["model"] == "pretended"
    assert found[0]["document_id"] == "~summary/c/2/1"
    assert after["tokens"] <= 10_000
    assert summaries_of(await fetch(w, "another")) == []
    assert summaries_of(await fetch(w, fetch_summary_share=0.0)) == []


async def test_summaries_take_their_share_of_the_budget_the_widest_first_with_a_pretended_engine(w):
    await w.say("c", 44)
    await w.folder.turn()
    body = await fetch(w, budget=120, fetch_turn_share=0.0)
    assert sum(chunk["tokens"] for chunk in summaries_of(body)) <= 24
    assert [chunk["summary"]["level"] for chunk in summaries_of(body)] == [2, 1]


async def test_a_fetch_reads_shown_summaries_by_their_index_however_many_there_are(w):
    await w.run(
        "INSERT INTO summaries (tenant, conversation_id, level, first_seq, last_seq, turns, body, shown)"
        " SELECT 't', 'c' || n % 50, 0, n * 10, n * 10 + 9, 10, repeat('x', 500), n > 9000"
        " FROM generate_series(1, 10000) n"
    )
    async with await psycopg.AsyncConnection.connect(w.conninfo, autocommit=True) as c:
        await c.execute("ANALYZE summaries")

    class Explained:
        async def execute(self, statement, values):
            async with w.db.read() as c:
                cursor = await c.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", values)
                self.plan = "\n".join(row["QUERY PLAN"] for row in await cursor.fetchall())

            async def none():
                return []

            return SimpleNamespace(fetchall=none)

    explained = Explained()
    await summaries.shown(explained, "t", "c7", 64)
    assert "summaries_shown" in explained.plan
    assert "Sort" not in explained.plan
    assert "Seq Scan" not in explained.plan


# -- deletions --------------------------------------------------------------------------------------------------------


async def test_a_deleted_turn_takes_the_summaries_above_it_at_once_and_they_are_made_again_by_a_pretended_engine(w):
    await w.say("c", 44)
    await w.folder.turn()
    version = (await fetch(w))["context_version"]
    await delete(w, 5)
    # 4..7 is withdrawn and so is what was made of it; the others below are shown instead.
    assert await w.shown() == [(0, 0, 3), (1, 8, 15), (1, 16, 23), (1, 24, 31), (0, 32, 35), (0, 36, 39)]
    assert {row["body"] for row in await w.all() if row["first_seq"] - 1 <= 5 <= row["last_seq"] - 1} == {None}
    body = await fetch(w)
    assert len(summaries_of(body)) == 6
    assert body["context_version"] != version
    w.engine.asked.clear()
    await w.folder.turn()
    assert await w.shown() == [(2, 0, 15), (1, 16, 23), (1, 24, 31), (0, 32, 35), (0, 36, 39)]
    assert len(w.engine.asked) == 3, "one a level"
    assert not any("turn number 5 " in asked for asked in w.engine.asked)


async def test_a_turn_that_retention_removes_takes_the_summaries_above_it_by_a_pretended_engine(w):
    await w.say("c", 44)
    await w.folder.turn()
    await w.db.write(
        lambda c: c.execute(
            "UPDATE versions SET received_at = now() - interval '9 days' WHERE document_id = '~turn/c/5'"
        )
    )
    removed = (await w.db.write(lambda c: expiry.remove(c, "t", "turn", 7))).value
    assert removed.number == 1
    assert {row["body"] for row in await w.all() if row["first_seq"] - 1 <= 5 <= row["last_seq"] - 1} == {None}


async def test_where_all_turns_of_a_summary_are_deleted_nothing_is_said_of_them_and_a_pretended_engine_not_asked(w):
    await w.say("c", 24)
    await w.folder.turn()
    for turn in range(4):
        await delete(w, turn)
    w.engine.asked.clear()
    await w.folder.turn()
    assert next(row["body"] for row in await w.all() if row["level"] == 0) == ""
    assert [asked.count("summary") for asked in w.engine.asked] == [1], "the level above, of what is left"
    assert (await w.shown())[0][0] == 1
    assert "" not in [chunk["text"] for chunk in summaries_of(await fetch(w))]


async def test_a_deleted_conversation_has_no_summaries_and_begins_anew_with_a_pretended_engine(w):
    await w.say("c", 24)
    await w.say("kept", 8)
    await w.folder.turn()
    await w.db.write(lambda c: removal.delete_turns(c, "t", "c"))
    assert {row["conversation_id"] for row in await w.rows("SELECT conversation_id FROM summaries")} == {"kept"}
    assert summaries_of(await fetch(w)) == []
    await w.say("c", 8, first=100)
    w.engine.asked.clear()
    await w.folder.turn()
    assert [asked.count("turn number 10") for asked in w.engine.asked] == [4]


async def test_a_deleted_tenant_leaves_no_summaries_with_a_pretended_engine(w):
    await w.say("c", 24)
    await w.say("c", 8, tenant="other")
    await w.folder.turn()
    await w.db.write(lambda c: removal.delete_tenant(c, "t"))
    assert {row["tenant"] for row in await w.rows("SELECT tenant FROM summaries UNION SELECT tenant FROM folds")} == {
        "other"
    }


@pytest.mark.parametrize("what", ["turn", "conversation", "tenant"])
async def test_a_deletion_while_a_pretended_engine_writes_wins(w, what):
    await w.say("c", 8)

    async def deletes():
        if what == "turn":
            await delete(w, 1)
        elif what == "conversation":
            await w.db.write(lambda c: removal.delete_turns(c, "t", "c"))
        else:
            await w.db.write(lambda c: removal.delete_tenant(c, "t"))
        w.engine.answer = None
        return "of what is deleted"

    w.engine.answer = deletes
    await w.folder.turn()
    assert "of what is deleted" not in [row["body"] for row in await w.all()]


async def _work(w):
    await w.folder._follow()
    fold = (await w.db.write(lambda c: folds.claim(c, "one", 60))).value
    async with w.db.read() as c:
        sources = await summaries.turns(c, fold, 1, 5, 4, 1000)
    return fold, summaries.Range(0, 1, 4), sources


async def test_a_summary_waits_for_a_deletion_that_is_not_committed_and_is_thrown_away(w):
    await w.say("c", 8)
    fold, where, sources = await _work(w)
    async with w.db.pool.connection() as deleting, deleting.transaction():
        await accept_deletion(deleting, "t", "~turn/c/1")
        writing = asyncio.create_task(
            w.db.write(lambda c: summaries.write(c, fold, "one", where, sources, "of what is deleted", "m"))
        )
        await asyncio.sleep(0.2)
        assert not writing.done()
    with pytest.raises(Overtaken):
        await writing
    assert await w.all() == []


async def test_a_deletion_waits_for_a_summary_that_is_not_committed_and_takes_it_away(w):
    await w.say("c", 8)
    fold, where, sources = await _work(w)
    async with w.db.pool.connection() as writing, writing.transaction():
        await summaries.write(writing, fold, "one", where, sources, "of what is deleted", "m")
        deleting = asyncio.create_task(delete(w, 1))
        await asyncio.sleep(0.2)
        assert not deleting.done()
    await deleting
    assert [row["body"] for row in await w.all()] == [None]


async def test_a_summary_is_not_written_by_who_lost_the_claim(w):
    await w.say("c", 8)
    fold, where, sources = await _work(w)
    with pytest.raises(Overtaken, match="claim"):
        await w.db.write(lambda c: summaries.write(c, fold, "two", where, sources, "text", "m"))
    generation = await w.rows("SELECT generation FROM conversations")
    assert generation == [{"generation": 8}], "nothing changed for readers"


async def test_a_summary_of_what_is_not_there_any_more_is_found_by_the_check_with_a_pretended_engine(w):
    await w.say("c", 24)
    await w.folder.turn()
    # As a release that knows of no summaries would delete.
    await w.run("UPDATE documents SET deleted_version = 2, latest_version = 2 WHERE document_id = '~turn/c/1'")
    w.engine.asked.clear()
    await w.folder.turn()
    await w.folder.turn()
    assert not any("turn number 1 " in asked for asked in w.engine.asked)
    assert len(w.engine.asked) == 2
    assert all(row["body"] for row in await w.all())


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_said_and_deleted_summaries_say_each_older_turn_once_and_no_deleted_one_by_a_pretended_engine(
    w, seed
):
    chance = random.Random(seed)
    said, deleted = 0, set()

    async def repeats():
        return " ".join(re.findall(r"number \d+", w.engine.asked[-1]))

    def told(rows) -> list[int]:
        return [int(number) for row in rows for number in re.findall(r"number (\d+)", row["body"] or "")]

    w.engine.answer = repeats
    for _ in range(12):
        number = chance.randrange(1, 12)
        await w.say("c", number, first=said)
        said += number
        if chance.random() < 0.7:
            await w.folder.turn()
        for turn in chance.sample(range(said), min(said, chance.randrange(4))):
            if turn not in deleted:
                await delete(w, turn)
                deleted.add(turn)
                assert turn not in told(await w.all())
        shown = [row for row in await w.all() if row["shown"]]
        assert len(told(shown)) == len(set(told(shown)))
    await w.folder.turn()
    rows = await w.all()
    newest = max((row["last_seq"] for row in rows if row["level"] == 0), default=0)
    older = [turn for turn in range(said) if await _seq(w, turn) <= newest and turn not in deleted]
    assert sorted(told(row for row in rows if row["shown"])) == older
    assert all(row["body"] is not None for row in rows)
    assert max(Counter(row["level"] for row in rows if row["shown"]).values()) <= 3


async def _seq(w, turn: int) -> int:
    found = await w.rows("SELECT seq FROM versions WHERE kind = 'turn' AND document_id = %s", f"~turn/c/{turn}")
    return found[0]["seq"]


def test_the_schema_goes_back_and_forth(conninfo):
    assert schema.migrate(conninfo, "0005").after == "0005"
    assert schema.migrate(conninfo).after == schema.head()
