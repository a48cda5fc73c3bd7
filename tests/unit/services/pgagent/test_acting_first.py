"""Who starts a failover, and when nobody does: a follower's agent among pretended peers (duties.py, "Probe", "Act")."""

import pytest

from devmentor_ha.rules import changed_followers
from tests.unit.services.pgagent.pretended import CLOCK, FIRST, NODES

TWO = changed_followers(FIRST, ["pg2", "pg3"])


def lose_the_leader(around, suspecting=("pg3", "pg4")):
    around.neighbours.lose("pg1")
    around.neighbours.suspect(*suspecting)


def fenced_after(around):
    """Seconds until the first fence; None where there was none."""
    times = [asked.at for asked in around.neighbours.asked if asked.method == "fence"]
    return min(times, default=None)


async def delay(around, lost_at):
    await around.live(10)
    fenced = fenced_after(around)
    return None if fenced is None else fenced - lost_at


async def test_a_leader_that_pretended_peers_call_healthy_is_left_alone(surround):
    around = surround("pg2")
    await around.live(30)
    assert around.agent.suspicion is None
    assert around.neighbours.calls("fence") == []
    assert around.journal == []


async def test_a_follower_suspects_after_three_failed_probes(surround):
    around = surround("pg2", probe_interval_s=0.5)
    await around.live(5)
    around.neighbours.dead.add("pg1")
    await around.live(1.0)
    assert around.agent.suspicion is None
    await around.live(1.0)
    assert around.agent.suspicion["leader"] == "pg1"
    around.neighbours.dead.clear()
    await around.live(1.0)
    assert around.agent.suspicion is None


async def test_a_leader_whose_agent_calls_its_disk_full_stays_suspected(surround):
    around = surround("pg2")
    around.neighbours.status["pg1"]["unwell"] = "disk full"
    await around.live(5)
    for _ in range(20):
        await around.live(0.3)
        assert around.agent.suspicion
        assert around.agent.suspicion["reason"] == "disk full"


async def test_just_booted_nobody_suspects_a_leader_that_never_answered(surround, monkeypatch):
    around = surround("pg2", startup_grace_s=15)
    monkeypatch.setattr("devmentor.pgagent.duties.booted_at", CLOCK.time)
    around.neighbours.lose("pg1")
    await around.live(10)
    assert around.agent.suspicion is None


@pytest.mark.parametrize("change", ["no follower of the rule", "its server is stopped"])
async def test_who_is_no_running_follower_is_no_witness(surround, change):
    around = surround("pg4", rule=TWO if change == "no follower of the rule" else FIRST)
    if change == "its server is stopped":
        around.server.pid, around.server.starts = None, False
    lose_the_leader(around, ("pg2", "pg3"))
    await around.live(10)
    assert around.agent.suspicion is None
    assert around.neighbours.calls("fence") == []


async def test_with_a_quorum_of_suspecting_pretended_peers_the_first_acts_at_once(surround):
    around = surround("pg2")
    await around.live(5)
    lose_the_leader(around)
    began = CLOCK.now
    assert await delay(around, began) < 3 * 0.5 + 1.0
    assert around.neighbours.calls("fence") == ["pg3", "pg4"]
    assert around.leading.rule.name == "2.0"


@pytest.mark.parametrize(("node", "beats"), [("pg2", 0), ("pg3", 1), ("pg4", 2)])
async def test_by_name_each_further_node_waits_a_beat_longer(surround, node, beats):
    around = surround(node)
    lose_the_leader(around, [name for name in NODES if name not in ("pg1", node)])
    await around.live(0)
    while around.agent.suspicion is None:
        await around.live(0.05)
    assert await delay(around, CLOCK.now) == pytest.approx(beats * 0.4, abs=0.25)


async def test_priority_comes_before_the_name(surround):
    around = surround("pg4", priorities={"pg4": 1})
    lose_the_leader(around, ("pg2", "pg3"))
    await around.live(0)
    while around.agent.suspicion is None:
        await around.live(0.05)
    assert await delay(around, CLOCK.now) < 0.25


@pytest.mark.parametrize(
    "change",
    [
        lambda peers: peers.suspect("pg3", "pg4", leader="pg9"),
        lambda peers: peers.silent.update({"pg3", "pg4"}),
    ],
)
async def test_one_suspicion_alone_is_no_quorum(surround, change):
    around = surround("pg2")
    around.neighbours.lose("pg1")
    change(around.neighbours)
    await around.live(20)
    assert around.agent.suspicion is not None
    assert around.neighbours.calls("fence") == []


async def test_suspicions_of_pretended_peers_outside_the_rule_do_not_count(surround):
    """Rule 1.1 needs both of pg2 and pg3; pg4 is none of its followers."""
    around = surround("pg2", rule=TWO)
    lose_the_leader(around, ["pg4"])
    await around.live(20)
    assert around.neighbours.calls("fence") == []


async def test_nobody_acts_for_others_without_suspecting_itself(surround):
    around = surround("pg2")
    around.neighbours.suspect("pg3", "pg4")
    await around.live(20)
    assert around.neighbours.calls("fence") == []


async def test_who_finds_the_leader_alive_while_it_asks_the_others_does_nothing(surround, caplog):
    around = surround("pg2")
    lose_the_leader(around)

    def meanwhile(_body):
        around.agent.suspicion = None
        return {**around.neighbours.status["pg3"], "now": CLOCK.time()}

    around.neighbours.answers["pg3", "status"] = meanwhile
    await around.live(10)
    assert around.neighbours.calls("fence") == []
    assert "unexpected" not in caplog.text


async def test_nobody_acts_while_a_pretended_peer_has_just_promised(surround):
    around = surround("pg2")
    await around.live(5)
    lose_the_leader(around)
    around.neighbours.promise("pg3", 2)
    promised = CLOCK.now
    assert 3.0 <= await delay(around, promised) < 5.0
    assert around.neighbours.body("fence")["epoch"] == 3


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
async def test_a_pretended_peers_clock_does_not_tell_how_long_ago_it_promised(surround, ahead_s):
    around = surround("pg2")
    await around.live(5)
    around.neighbours.status["pg3"]["clock_ahead_s"] = ahead_s
    lose_the_leader(around)
    around.neighbours.promise("pg3", 2)
    promised = CLOCK.now
    assert 3.0 <= await delay(around, promised) < 5.0


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0])
async def test_nobody_acts_while_another_candidate_waits_for_its_row_and_then_somebody_does(surround, ahead_s):
    around = surround("pg2")
    await around.live(5)
    around.neighbours.status["pg3"]["clock_ahead_s"] = ahead_s
    lose_the_leader(around)
    around.neighbours.promise("pg3", 2, ago_s=60)
    row = {**FIRST.as_dict(), "epoch": 2, "leader": "pg3", "followers": ["pg2", "pg4"], "w": 1}
    around.neighbours.status["pg3"].update(committing=row, waits_since=CLOCK.time() + ahead_s)
    began = CLOCK.now
    await around.live(14)
    assert around.neighbours.calls("fence") == []
    assert 14.9 <= await delay(around, began) < 17.0


async def test_a_row_below_the_rule_is_no_candidate(surround):
    around = surround("pg2")
    lose_the_leader(around)
    around.neighbours.status["pg3"].update(committing=FIRST.as_dict(), waits_since=CLOCK.time())
    await around.live(8)
    assert around.neighbours.calls("fence") == ["pg3", "pg4"]


@pytest.mark.parametrize("who", ["pg2", "pg3"])
async def test_nobody_acts_while_anybody_is_paused_and_afterwards_somebody_does(surround, who):
    around = surround("pg2")
    until = CLOCK.time() + 20
    if who == "pg2":
        around.state.set_paused(until, "maintenance")
    else:
        around.neighbours.status[who]["paused"] = {"until": until, "reason": "maintenance"}
    lose_the_leader(around)
    await around.live(19)
    assert around.neighbours.calls("fence") == []
    await around.live(5)
    assert around.neighbours.calls("fence") == ["pg3", "pg4"]


async def test_a_paused_leader_whose_agent_answers_is_not_replaced(surround):
    around = surround("pg2")
    around.neighbours.status["pg1"]["paused"] = {"until": CLOCK.time() + 600, "reason": "its disk is replaced"}
    around.neighbours.dead.add("pg1")
    around.neighbours.suspect("pg3", "pg4")
    await around.live(60)
    assert around.agent.suspicion is not None
    assert around.neighbours.calls("fence") == []
    around.neighbours.status["pg1"]["paused"] = {"until": 0, "reason": ""}
    await around.live(5)
    assert around.neighbours.calls("fence") == ["pg3", "pg4"]


async def test_a_pause_of_a_leader_that_is_gone_holds_back_nobody(surround):
    """The operator resumes on those that answer; nobody can resume the one that is gone."""
    around = surround("pg2")
    around.neighbours.status["pg1"]["paused"] = {"until": CLOCK.time() + 600, "reason": "its disk is replaced"}
    await around.live(5)
    lose_the_leader(around)
    await around.live(8)
    assert around.neighbours.calls("fence") == ["pg3", "pg4"]


async def test_who_only_observes_only_says_what_it_would_do(surround, caplog):
    around = surround("pg2", observe_only=True)
    lose_the_leader(around)
    await around.live(20)
    assert around.neighbours.calls("fence") == []
    assert around.journal == []
    assert "no failover: paused or observing only" in caplog.text


async def test_a_refused_failover_is_not_tried_again_at_once(surround):
    """pg4 and pg3 suspect, but their servers are stopped: nobody is fenced for nothing."""
    around = surround("pg2")
    lose_the_leader(around)
    for name in ("pg3", "pg4"):
        around.neighbours.status[name]["postgres"]["state"] = "stopped"
    await around.live(20)
    assert around.neighbours.calls("fence") == []
    assert around.state.promise.epoch == 0
