"""When summaries are not made, or not well, on a real PostgreSQL with a pretended engine: busy, away, refusing."""

import asyncio

import pytest
from aiohttp import web
from summary_world import prepared_postgres, world

from devmentor.pbml.db import DatabaseUnavailable
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import folds
from devmentor.pbml.summaries import commands
from devmentor.pbml.summaries import engine as engine_module
from devmentor.pbml.summaries import folder as folder_module
from devmentor.pbml.worker import Worker


@pytest.fixture(scope="module")
def conninfo():
    with prepared_postgres() as made:
        yield made


@pytest.fixture
async def w(conninfo):
    async with world(conninfo) as made:
        yield made


@pytest.mark.parametrize(
    "state", [{"running": 1}, {"waiting": 1}, {"metrics_status": 404}, {"running": "NaN"}], ids=str
)
async def test_a_pretended_engine_that_is_busy_or_does_not_say_is_not_asked(w, state):
    for name, value in state.items():
        setattr(w.engine, name, value)
    await w.say("c", 8)
    await w.folder.turn()
    assert w.engine.asked == []
    assert await w.all() == []
    w.engine.running = w.engine.waiting = 0
    w.engine.metrics_status = 200
    await w.folder.turn()
    assert len(w.engine.asked) == 1
    assert w.engine.headers[0]["X-DevMentor-Context"] == "none"


async def test_all_engines_that_are_named_must_be_idle_one_of_them_pretended_and_one_away(w):
    await w.say("c", 8)
    folder = w.worker("two", summary_load_urls=[w.engine.url, "http://127.0.0.1:9"])
    await folder._engine.open()
    await folder.turn()
    await folder._engine.close()
    assert w.engine.asked == []


async def test_a_summary_is_broken_off_when_a_request_waits_at_the_pretended_engine(w, monkeypatch):
    monkeypatch.setattr(engine_module, "_LOOK_S", 0.05)
    await w.say("c", 8)

    async def slow():
        w.engine.waiting = 1
        await asyncio.sleep(30)

    w.engine.answer = slow
    await asyncio.wait_for(w.folder.turn(), 5)
    assert await w.all() == []
    row = (await w.rows("SELECT holder, failed_runs, due_at FROM folds"))[0]
    assert (row["holder"], row["failed_runs"]) == (None, 0)
    assert row["due_at"] is not None


async def test_a_conversation_that_a_pretended_engine_refuses_is_parked_with_the_reason_and_comes_back_on_demand(w):
    await w.say("c", 8)

    async def refuses():
        return web.json_response({"error": {"message": "too much"}}, status=400)

    w.engine.answer = refuses
    pauses = []
    for _ in range(5):
        await w.folder.turn()
        pauses.append(w.folder.pause_s)
        await w.run("UPDATE folds SET due_at = now() WHERE due_at IS NOT NULL")
    assert len(w.engine.asked) == 3
    assert pauses == [0.02, 0.04, 0.08, 0.08, 0.08]
    row = (await w.rows("SELECT failed_runs, failure, due_at, parked_at FROM folds"))[0]
    assert (row["failed_runs"], row["due_at"]) == (3, None)
    assert row["parked_at"] is not None
    assert "too much" in row["failure"]
    await w.say("c", 4, first=8)
    await w.folder.turn()
    assert len(w.engine.asked) == 3, "more turns do not bring it back"
    w.engine.answer = None
    assert (await w.db.write(lambda c: folds.retry(c, "t", None))).value == 1
    await w.folder.turn()
    assert [row["level"] for row in await w.all()] == [0, 0]


async def test_a_fault_of_ours_that_a_conversation_brings_about_parks_it_too_with_a_pretended_engine(w, monkeypatch):
    await w.say("c", 8)

    def breaks(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(folder_module, "cleaned", breaks)
    for _ in range(4):
        await w.folder.turn()
        await w.run("UPDATE folds SET due_at = now() WHERE due_at IS NOT NULL")
    row = (await w.rows("SELECT failed_runs, failure, parked_at FROM folds"))[0]
    assert (row["failed_runs"], row["failure"]) == (3, "ZeroDivisionError: ours")
    assert row["parked_at"] is not None


def test_a_worker_folds_only_where_an_endpoint_is_named():
    assert Worker(Settings(tenants_file=None))._folder is None
    named = Settings(tenants_file=None, summary_urls=["http://127.0.0.1:9"], summary_model="m")
    assert Worker(named)._folder is not None


@pytest.mark.parametrize("said", ["", "  \n", "<think>only thoughts", "<think>thoughts</think>\n"])
async def test_nothing_said_by_a_pretended_engine_is_a_failure(w, said):
    await w.say("c", 8)

    async def answer():
        return said

    w.engine.answer = answer
    await w.folder.turn()
    assert await w.all() == []
    assert (await w.rows("SELECT failure FROM folds"))[0]["failure"] == "the model said nothing"


async def test_a_pretended_engine_that_is_overloaded_is_nobodys_fault_and_is_asked_ever_more_seldom(w):
    await w.say("c", 8)

    async def overloaded():
        return web.Response(status=503)

    w.engine.answer = overloaded
    for _ in range(4):
        await w.folder.turn()
        await w.run("UPDATE folds SET due_at = now()")
    assert (await w.rows("SELECT failed_runs FROM folds"))[0]["failed_runs"] == 0
    assert w.folder.pause_s == pytest.approx(0.16)
    w.engine.answer = None
    await w.folder.turn()
    assert w.folder.pause_s == pytest.approx(0.01)


async def test_a_pretended_engine_that_does_not_end_is_given_up_at_the_deadline(w):
    await w.say("c", 8)

    async def never():
        await asyncio.sleep(30)

    w.engine.answer = never
    folder = w.worker("two", summary_timeout_s=0.2)
    await folder._engine.open()
    await folder.turn()
    await folder._engine.close()
    assert "no answer within 0.2 s" in (await w.rows("SELECT failure FROM folds"))[0]["failure"]


async def test_a_database_that_is_away_ends_the_round_and_not_the_loop(w, monkeypatch):
    rounds = []

    async def turn():
        rounds.append(1)
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(w.folder, "turn", turn)
    loop = asyncio.create_task(w.folder.run())
    await asyncio.sleep(0.1)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert len(rounds) > 1


async def test_the_command_says_what_was_given_up_and_drops_summaries_made_by_a_pretended_engine(w):
    await w.say("c", 16)
    await w.say("bad", 8)

    async def refuses_one():
        return web.Response(status=400) if "of bad" in w.engine.asked[-1] else "said"

    w.engine.answer = refuses_one
    await w.run("UPDATE versions SET content = content || ' of bad' WHERE conversation_id = 'bad'")
    for _ in range(5):
        await w.folder.turn()
        await w.run("UPDATE folds SET due_at = now() WHERE due_at IS NOT NULL")
    said = await commands.status(w.settings)
    assert (said["parked"], said["summaries"]) == (1, [{"level": 0, "summaries": 3, "stale": 0}])
    assert [(g["conversation_id"], "status 400" in g["reason"]) for g in said["given_up"]] == [("bad", True)]
    assert await commands.retry(w.settings, "other", None) == {"changed": False, "retried": 0}
    assert await commands.retry(w.settings, "t", "bad") == {"changed": True, "retried": 1}
    assert await commands.rebuild(w.settings, "t", "c") == {"changed": True, "conversations": 1}
    assert await w.all() == []
    w.engine.answer = None
    await w.folder.turn()
    assert len(await w.all()) == 4
