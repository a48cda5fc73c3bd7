"""What a follower concludes from the leader's silence while its own server is slow, too (probe.py)."""

import asyncio
import logging

import psycopg
import pytest

from devmentor.pgagent import metrics, probe
from devmentor.pgagent.probe import BEAT, Probe
from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Silent
from tests.unit.services.pgagent.pretended import ADDRESSES, CLOCK

LIMIT_S = 0.5
SLOW_S, PROMPT_S = 0.26, 0.25  # either side of half the limit
NEEDED, EXCUSES = (Settings.model_fields[name].default for name in ("probe_failures", "probe_excuses"))
LATE = NEEDED + EXCUSES


@pytest.fixture
def around(surround):
    return surround("pg2", probe_interval_s=LIMIT_S)


@pytest.fixture
def witness(around):
    """pg2, which probes pg1."""
    return probing(around)


def probing(around):
    return Probe(around.settings, "pg1", ADDRESSES["pg1"])


async def rounds_until_suspected(witness, at_most=20):
    for number in range(1, at_most + 1):
        await witness.once()
        if witness.suspicion:
            return number
    return None


@pytest.mark.parametrize(("own_s", "rounds"), [(0.0, NEEDED), (PROMPT_S, NEEDED), (SLOW_S, LATE), (60.0, LATE)])
async def test_a_silent_leader_is_suspected_three_rounds_later_by_who_is_slow_itself(around, witness, own_s, rounds):
    around.neighbours.dead.add("pg1")
    around.late["pg2"] = own_s
    began = CLOCK.now
    assert await rounds_until_suspected(witness) == rounds
    assert CLOCK.now - began == pytest.approx(rounds * LIMIT_S), "no round is longer than the probe itself"
    assert witness.suspicion["failures"] == NEEDED


@pytest.mark.parametrize("excuses", [0, 1, 20])
async def test_as_many_are_excused_as_the_setting_says(surround, excuses):
    around = surround("pg2", probe_excuses=excuses)
    around.neighbours.dead.add("pg1")
    around.late["pg2"] = 60.0
    assert await rounds_until_suspected(probing(around), at_most=30) == excuses + NEEDED


async def test_without_excuses_the_own_server_is_not_even_asked(surround, monkeypatch):
    around = surround("pg2", probe_excuses=0)
    asked = []
    answer = around.fresh_rows

    async def fresh_rows(conninfo, *rest):
        asked.append(ADDRESSES["pg2"] in conninfo)
        return await answer(conninfo, *rest)

    monkeypatch.setattr(around, "fresh_rows", fresh_rows)
    monkeypatch.setattr(probe, "fresh_rows", fresh_rows)
    await probing(around).once()
    await asyncio.sleep(1)
    assert asked == [False, False]


@pytest.mark.parametrize("own", ["stopped", "stalls"])
async def test_an_own_server_that_does_not_answer_at_all_is_slow(around, witness, monkeypatch, own):
    around.neighbours.dead.add("pg1")
    stopped = ConnectionRefusedError() if own == "stopped" else None
    says(monkeypatch, around, "pg2", stopped)
    assert await rounds_until_suspected(witness) == LATE


def says(monkeypatch, around, node, error, but=()):
    """The node's server says that (None: nothing, ever), except to the statements of `but`."""
    answer = around.fresh_rows

    async def fresh_rows(conninfo, statement, limit_s, what):
        if ADDRESSES[node] not in conninfo or statement in but:
            return await answer(conninfo, statement, limit_s, what)
        if error is None:
            await asyncio.Event().wait()
        raise Silent(f"{what}: {error!r}") from error

    monkeypatch.setattr(around, "fresh_rows", fresh_rows)
    monkeypatch.setattr(probe, "fresh_rows", fresh_rows)


async def test_a_leader_that_refuses_is_never_excused(around, witness, monkeypatch):
    around.late["pg2"] = 60.0
    says(monkeypatch, around, "pg1", ConnectionRefusedError())
    assert await rounds_until_suspected(witness) == NEEDED


async def test_what_the_leaders_agent_says_of_it_is_never_excused(around, witness):
    around.late["pg2"] = 60.0
    for _ in range(3):
        await witness.once(unwell="disk full")
    assert witness.suspicion["reason"] == "disk full"


async def test_an_answer_of_the_leader_gives_the_excuses_anew(around, witness):
    around.late["pg2"] = 60.0
    for _ in range(5):
        around.neighbours.dead.add("pg1")
        assert await rounds_until_suspected(witness, at_most=NEEDED + EXCUSES - 1) is None
        around.neighbours.dead.clear()
        await witness.once()
    around.neighbours.dead.add("pg1")
    assert await rounds_until_suspected(witness) == LATE


async def test_an_excuse_takes_no_failure_back(around, witness):
    around.neighbours.dead.add("pg1")
    for own_s in (0.0, 60.0, 0.0, 60.0):
        around.late["pg2"] = own_s
        await witness.once()
    assert witness.suspicion is None
    around.late["pg2"] = 0.0
    await witness.once()
    assert witness.suspicion["failures"] == NEEDED


@pytest.mark.parametrize("error", [TimeoutError, psycopg.errors.ConnectionTimeout])
async def test_a_frozen_postmaster_has_excuses_of_its_own_though_sessions_answer(around, witness, monkeypatch, error):
    """Or a slow witness would excuse it for ever."""
    around.late["pg2"] = 60.0
    says(monkeypatch, around, "pg1", error(), but=[BEAT])
    assert await rounds_until_suspected(witness) == LATE
    assert "newly" in witness.suspicion["reason"]


async def test_while_the_leader_answers_nobody_waits_for_the_own_server(around, witness):
    around.late["pg2"] = 60.0
    began = CLOCK.now
    for _ in range(5):
        await witness.once()
    assert CLOCK.now == began


async def test_however_slow_it_is_the_own_server_is_asked_one_thing_of_a_kind_at_a_time(around, witness, monkeypatch):
    says(monkeypatch, around, "pg2", None)
    before = asyncio.all_tasks()
    for _ in range(10):
        await witness.once()
        await asyncio.sleep(LIMIT_S)
        assert len(asyncio.all_tasks() - before) <= 2
    witness.close()


async def test_after_a_failure_its_connection_is_made_anew_like_the_leaders(around, witness, monkeypatch):
    dropped = []
    monkeypatch.setattr(witness._reference._database, "drop", lambda: dropped.append(CLOCK.now))
    await witness.once()
    assert dropped == []
    around.neighbours.dead.add("pg1")
    await witness.once()
    assert dropped == [CLOCK.now]


async def test_a_closed_probe_leaves_nothing_under_way(around, witness):
    around.late["pg2"] = 60.0
    before = asyncio.all_tasks()
    await witness.once()
    assert asyncio.all_tasks() > before
    witness.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_nor_does_an_agent_that_ends(around):
    around.late["pg2"] = 60.0
    before = asyncio.all_tasks()
    await around.live(0.7)
    await around.duties.end()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_excuses_are_counted_and_logged_once_for_each_spell(around, witness, caplog):
    before = metrics.EXCUSED._value.get()
    around.late["pg2"] = 60.0
    for _ in range(2):
        around.neighbours.dead.add("pg1")
        with caplog.at_level(logging.WARNING):
            for _ in range(EXCUSES + 2):
                await witness.once()
        around.neighbours.dead.clear()
        await witness.once()
    assert metrics.EXCUSED._value.get() - before == 2 * EXCUSES
    assert [record.leader for record in caplog.records if "excuses" in record.message] == ["pg1", "pg1"]


@pytest.mark.parametrize(("own_s", "suspects"), [(0.0, True), (SLOW_S, False)])
async def test_a_pause_of_two_seconds_is_no_failover_where_all_are_slow(around, own_s, suspects):
    await around.live(5)
    around.neighbours.suspect("pg3", "pg4")
    around.late["pg2"] = own_s
    around.neighbours.dead.add("pg1")
    await around.live(2.2)
    around.neighbours.dead.clear()
    await around.live(2)
    assert bool(around.neighbours.calls("fence")) == suspects
