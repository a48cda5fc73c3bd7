"""A leader that hears of more than its rule from pretended peers: reaffirmed, or superseded (duties.py, "Serve")."""

import asyncio

import pytest

from devmentor_ha.rules import next_rule
from tests.unit.services.pgagent.pretended import CLOCK, FENCED, FIRST, LSN, Standby, control_data, raising, refused

SECOND = next_rule([FIRST], "pg2", 2)


def at(around, method):
    """When it was first called, by the clock; None where it was not."""
    return min((asked.at for asked in around.neighbours.asked if asked.method == method), default=None)


# Reaffirm


@pytest.mark.parametrize("node", ["pg3", "pg4"])
async def test_a_leader_is_reaffirmed_three_seconds_after_a_pretended_peers_promise_and_not_before(surround, node):
    around = surround("pg1", reaffirm_after_s=3)
    await around.live(3)
    around.neighbours.promise(node, 2)
    heard = CLOCK.now
    await around.live(2.5)
    assert at(around, "fence") is None
    await around.live(5)
    assert 3.0 <= at(around, "fence") - heard < 5.0
    assert around.leading.rule == next_rule([FIRST], "pg1", 3)
    assert around.state.promise.epoch == 3
    assert "promote" not in around.journal


async def test_the_promise_of_a_pretended_peer_outside_the_rule_counts(surround):
    """It could not come back: a node that promised more joins no leader of less."""
    rule = next_rule([FIRST], "pg1", 2)
    small = rule.__class__(2, 1, "pg1", frozenset({"pg2", "pg3"}), 1, (2, 0))
    around = surround("pg1", rule=small, grow_after_s=1000)
    around.state.set_promise(2, "pg1/x")
    around.neighbours.promise("pg4", 7, ago_s=60)
    await around.live(10)
    assert around.leading.rule.epoch == 8


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
async def test_clocks_that_differ_do_not_hold_a_reaffirmation_back(surround, ahead_s):
    around = surround("pg1")
    await around.live(3)
    around.neighbours.status["pg3"]["clock_ahead_s"] = ahead_s
    around.neighbours.promise("pg3", 2)
    await around.live(2.5)
    assert at(around, "fence") is None
    await around.live(5)
    assert around.leading.rule.epoch == 3


async def test_while_a_pretended_candidate_waits_for_its_row_the_leader_is_not_reaffirmed(surround):
    around = surround("pg1")
    await around.live(3)
    around.neighbours.promise("pg2", 2)
    around.neighbours.status["pg2"].update(committing=SECOND.as_dict(), waits_since=CLOCK.time())
    await around.live(13)
    assert at(around, "fence") is None
    await around.live(5)
    assert at(around, "fence") is not None


async def test_a_fenced_leader_acknowledges_nothing_until_it_is_reaffirmed(surround):
    around = surround("pg1")
    await around.live(3)
    around.neighbours.silent.update({"pg2", "pg3", "pg4"})
    await around.ask("fence", {"epoch": 2, "controller": "pg3/c"})
    await around.live(30)
    assert around.server.applied["synchronous_standby_names"] == FENCED
    assert around.leading.rule is None
    around.neighbours.silent.clear()
    await around.live(10)
    assert around.leading.rule.leader == "pg1"
    assert around.leading.rule.epoch > 2
    assert around.server.applied["synchronous_standby_names"] == 'ANY 2 ("pg2", "pg3", "pg4")'


async def test_while_the_checkpoint_after_a_promotion_runs_the_leader_is_reaffirmed_all_the_same(surround, monkeypatch):
    around = surround("pg2")
    await around.look()
    await around.ask("fence", {"epoch": 2, "controller": "pg3/c"})

    async def for_minutes(limit_s=300.0):
        await asyncio.sleep(600)

    monkeypatch.setattr(around.agent.postgres, "checkpoint", for_minutes)
    need = {"count": 1, "among": ["pg3", "pg4"]}
    lead = {"epoch": 2, "controller": "pg3/c", "rule": SECOND.as_dict(), "need": need, "fenced": ["pg3", "pg4"]}
    await around.ask("lead", lead)
    await around.live(3)
    assert around.leading.rule == SECOND
    around.neighbours.promise("pg3", 3)
    await around.live(10)
    assert around.leading.rule.epoch == 4


# Superseded


async def test_a_superseded_leader_rejoins_as_soon_as_the_pretended_leader_leads(surround):
    around = surround("pg1")
    await around.live(3)
    around.neighbours.lead(SECOND, timeline=2)
    around.neighbours.silent.add("pg2")
    around.neighbours.status["pg3"]["committed"] = SECOND.as_dict()
    await around.live(5)
    assert "stop" not in around.journal, "it does not stop before it knows whom to follow"
    around.neighbours.silent.clear()
    await around.live(5)
    order = around.journal
    assert "stop" in order
    assert order.index("stop") < order.index("start")
    assert around.leading.rule is None
    assert around.state.promise.epoch == 2
    assert around.state.following == {"epoch": 2, "leader": "pg2"}
    assert around.server.in_recovery
    assert not [line for line in order[order.index("stop") :] if line.startswith("row")]


def waits_for_its_row(around):
    """pg2 was promoted for 2.0, its row is in its WAL, and no pretended follower has it."""
    server = around.server
    server.in_recovery, server.timeline, server.checkpoint_timeline = False, 2, 2
    server.rules = [FIRST, SECOND]
    (server.data / "standby.signal").unlink()
    (server.data / "pg_wal" / "00000002.history").write_text(f"1\t0/{LSN:X}\tno\n")
    server.write_conf({"synchronous_standby_names": FENCED})
    server.take_up()
    server.standbys = {"pg4": Standby(flushed=LSN)}
    server.control = control_data(timeline=2)
    around.journal.clear()
    around.state.set_promise(2, "pg3/c")


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_superseded_leader_never_resumes_its_commit(surround, restarted):
    """Rule 3.0 of pg3 was committed without it; afterwards the followers that its row waited for are there."""
    around = surround("pg2")
    third = next_rule([FIRST], "pg3", 3)
    waits_for_its_row(around)
    if not restarted:
        await around.live(3)
        assert around.leading.committing == SECOND
    around.neighbours.lead(third, timeline=2)
    around.neighbours.answers["pg3", "status"] = raising(refused("pg3"))
    around.neighbours.status["pg4"]["committed"] = third.as_dict()
    await around.live(2)
    around.journal.clear()
    around.server.standbys = {"pg3": Standby(), "pg4": Standby()}
    await around.live(20)
    assert around.journal == []
    assert around.leading.rule is None
    assert around.leading.committing is None
    around.neighbours.answers.clear()
    around.server.standbys = {}
    await around.live(10)
    assert around.journal[0] == "stop"
    assert "pg_basebackup" in around.journal, "rewind does not see a fork of the same number"
    assert around.state.following == {"epoch": 3, "leader": "pg3"}


async def test_whose_newest_row_is_anothers_waits_to_be_chosen(surround):
    """Promoted, and its own row not written: it cannot acknowledge anything."""
    around = surround("pg2")
    waits_for_its_row(around)
    around.server.rules = [FIRST]
    await around.live(20)
    assert around.journal == []
    assert around.leading.rule is None


async def test_a_paused_leader_changes_nothing(surround):
    around = surround("pg1")
    await around.live(3)
    around.journal.clear()
    await around.ask("pause", {"until": CLOCK.time() + 60, "reason": "switch"})
    around.server.standbys["pg4"].state = "catchup"
    around.neighbours.promise("pg3", 2)
    await around.live(50)
    assert around.journal == []
    await around.live(20)
    assert around.leading.rule.epoch == 3


async def test_who_only_observes_does_not_serve(surround):
    around = surround("pg2", observe_only=True)
    waits_for_its_row(around)
    await around.live(20)
    assert around.journal == []
