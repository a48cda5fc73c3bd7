"""What a controller says to pretended peers, in which order, and how it goes back (controller.py)."""

import asyncio

import pytest

from devmentor.pgagent.peers import CallFailed
from devmentor_ha.rules import next_rule
from tests.unit.services.pgagent.pretended import FIRST, LSN, Standby, promised, raising, refused

SECOND = next_rule([FIRST], "pg3", 2)


@pytest.fixture
async def around(surround):
    """pg2 is the controller, pg1 leads; pg3 has the most."""
    found = surround("pg2")
    await found.look()
    found.neighbours.status["pg3"]["postgres"]["lsn"] = LSN + 10
    return found


def outcome(answer):
    return answer["outcome"], answer["epoch"]


def actions(around):
    """(node, what) of the calls that change something; pools by their action."""
    return [
        (asked.node, (asked.body or {}).get("action", asked.method))
        for asked in around.neighbours.asked
        if asked.method != "status"
    ]


# Failover


async def test_a_healthy_leader_is_replaced_only_by_force(around):
    answer = await around.ask("failover", {})
    assert answer["outcome"] == "refused"
    assert "pg1 is healthy" in answer["reasons"][0]
    assert actions(around) == []
    assert outcome(await around.ask("failover", {"force": True})) == ("done", 2)
    assert ("pg1", "fence") not in actions(around), "the one to be replaced is not asked"


async def test_the_followers_are_fenced_and_then_the_most_advanced_one_is_told(around):
    around.neighbours.lose("pg1")
    answer = await around.ask("failover", {})
    assert outcome(answer) == ("done", 2)
    assert actions(around) == [("pg3", "fence"), ("pg4", "fence"), ("pg3", "lead")]
    body = around.neighbours.body("lead")
    assert body["rule"] == SECOND.as_dict()
    assert body["need"] == {"count": 1, "among": ["pg2", "pg4"]}
    assert body["fenced"] == ["pg2", "pg3", "pg4"]
    assert around.state.promise.controller == body["controller"]


async def test_a_promise_in_the_way_ends_it_before_anybody_is_promoted(around):
    around.neighbours.lose("pg1")
    around.neighbours.answers["pg4", "fence"] = raising(promised("pg4", 2))
    answer = await around.ask("failover", {})
    assert answer["outcome"] == "aborted"
    assert around.neighbours.calls("lead") == []


async def test_a_pretended_peer_that_cannot_be_fenced_does_not_count(around):
    around.neighbours.lose("pg1")
    around.neighbours.answers["pg4", "fence"] = raising(refused("pg4"))
    assert (await around.ask("failover", {}))["outcome"] == "done"
    around.neighbours.answers["pg3", "fence"] = raising(refused("pg3"))
    assert (await around.ask("failover", {"force": True}))["outcome"] == "aborted"
    assert around.neighbours.calls("lead") == ["pg3"]


async def test_nobody_is_fenced_where_the_rule_cannot_be_covered(around):
    around.neighbours.silent.update({"pg1", "pg3", "pg4"})
    answer = await around.ask("failover", {})
    assert answer["outcome"] == "refused"
    assert "rule 1.0 needs 2" in answer["reasons"][0]
    assert around.state.promise.epoch == 0


async def test_nodes_of_rules_that_only_the_fenced_tell_of_are_fenced_too(around):
    """pg3 was half promoted: its row names pg1 as a follower."""
    around.neighbours.status["pg1"]["leading"] = None
    half = SECOND.__class__(2, 0, "pg3", frozenset({"pg1", "pg2"}), 1, (1, 0))
    row = {"rules": [FIRST.as_dict(), half.as_dict()], "committed": FIRST.as_dict(), "lsn": LSN + 10, "timeline": 2}
    around.neighbours.answers["pg3", "fence"] = lambda body: {"mode": "leader", **row}
    answer = await around.ask("failover", {})
    assert ("pg1", "fence") in actions(around)
    assert answer["outcome"] == "aborted", "2.0 was written already: epoch 2 is not above it"
    assert around.neighbours.calls("lead") == []


async def test_data_loss_is_accepted_for_the_epoch_that_was_named_alone(around):
    around.neighbours.silent.update({"pg1", "pg4"})
    around.neighbours.status["pg3"]["postgres"]["state"] = "running"
    answer = await around.ask("failover", {"force_data_loss": 7})
    assert answer["outcome"] == "refused"
    assert "the next one is 2" in answer["reasons"][0]
    assert actions(around) == []
    answer = await around.ask("failover", {"force_data_loss": 2})
    assert outcome(answer) == ("done", 2)
    assert answer["rule"]["followers"] == ["pg2"]


async def test_a_check_only_says_what_would_be(around):
    around.neighbours.lose("pg1")
    answer = await around.ask("failover", {"check": True})
    assert outcome(answer) == ("planned", 2)
    assert actions(around) == []
    assert around.state.promise.epoch == 0


async def test_a_candidate_that_does_not_answer_is_not_given_up(around):
    """It may lead: nothing is known, and nobody else is told to."""
    around.neighbours.lose("pg1")
    around.neighbours.answers["pg3", "lead"] = raising(refused("pg3"))
    assert (await around.ask("failover", {}))["outcome"] == "unknown"
    assert around.neighbours.calls("lead") == ["pg3"]


async def test_a_candidate_that_was_overtaken_is_said_to_be(around):
    around.neighbours.lose("pg1")
    around.neighbours.answers["pg3", "lead"] = lambda body: around.neighbours.promise("pg3", 5)
    answer = await around.ask("failover", {})
    assert answer["outcome"] == "aborted"
    assert "epoch 5 took over" in answer["reasons"][0]


# Switchover


async def test_a_switchover_pauses_demotes_fences_and_resumes(around):
    around.neighbours.status["pg3"]["postgres"]["lsn"] = LSN + 10
    around.neighbours.status["pg1"]["postgres"]["lsn"] = LSN + 10
    answer = await around.ask("switchover", {"target": "pg3", "deadline_s": 2})
    assert outcome(answer) == ("done", 2)
    assert [what for _node, what in actions(around)] == [
        *["checkpoint"] * 2,
        *["pause"] * 2,
        "demote",
        *["fence"] * 2,
        "lead",
        *["resume"] * 2,
    ]
    assert answer["rule"] == SECOND.as_dict()


async def test_where_a_pooler_cannot_be_paused_all_resume_and_nobody_is_demoted(around):
    around.neighbours.answers["pool2", "pool"] = lambda body: (
        raising(refused("pool2"))() if body["action"] == "pause" else {}
    )
    answer = await around.ask("switchover", {"target": "pg3"})
    assert answer["outcome"] == "refused"
    assert [entry for entry in actions(around) if entry[1] in ("demote", "fence", "lead")] == []
    assert [node for node, what in actions(around) if what == "resume"] == ["pool1", "pool2"]


@pytest.mark.parametrize(
    ("failure", "said"),
    [(refused("pg1"), "refused"), (CallFailed("pg1", "no answer to demote in 5 s"), "aborted")],
    ids=["it refuses", "it may be demoted"],
)
async def test_where_the_leader_is_not_demoted_the_poolers_resume(around, failure, said):
    around.neighbours.answers["pg1", "demote"] = raising(failure)
    answer = await around.ask("switchover", {"target": "pg3"})
    assert answer["outcome"] == said
    assert [node for node, what in actions(around) if what == "resume"] == ["pool1", "pool2"]
    assert around.neighbours.calls("lead") == []


async def test_a_target_that_lacks_something_gives_way_to_who_has_everything(around):
    around.neighbours.status["pg1"]["postgres"]["lsn"] = LSN + 10
    answer = await around.ask("switchover", {"target": "pg4"})
    assert outcome(answer) == ("done", 2)
    assert around.neighbours.calls("lead") == ["pg3"]


async def test_where_nobody_has_everything_nobody_leads(around):
    around.neighbours.status["pg1"]["postgres"]["lsn"] = LSN + 999
    answer = await around.ask("switchover", {"target": "pg3"})
    assert answer["outcome"] == "aborted"
    assert around.neighbours.calls("lead") == []
    assert [node for node, what in actions(around) if what == "resume"] == ["pool1", "pool2"]


async def test_a_switchover_that_is_not_ready_touches_nothing(around):
    around.neighbours.suspect("pg4")
    answer = await around.ask("switchover", {"target": "pg3"})
    assert answer["outcome"] == "refused"
    assert actions(around) == []


async def test_one_operation_at_a_time(around):
    async with around.agent.controller._lock:
        for call, body in (("failover", {"force": True}), ("switchover", {"target": "pg3"})):
            answer = await asyncio.wait_for(around.ask(call, body), 30)
            assert answer["outcome"] == "refused"
    assert actions(around) == []


# Reaffirm


async def test_a_leader_that_is_level_keeps_leading_and_one_that_is_behind_does_not(surround):
    around = surround("pg1", priorities={"pg2": 5})
    await around.look()
    for status in around.neighbours.status.values():
        if "postgres" in status:
            status["postgres"]["lsn"] = LSN
    around.server.standbys = {name: Standby() for name in ("pg2", "pg3", "pg4")}
    answer = await around.agent.controller.failover("test", reaffirm=True)
    assert (answer.result, answer.rule.leader) == ("done", "pg1")
    half = next_rule([FIRST], "pg2", 3)
    for name in ("rule", "committing"):
        around.neighbours.status["pg2"][name] = half.as_dict()
    around.neighbours.status["pg2"]["rules"] = [answer.rule.as_dict(), half.as_dict()]
    answer = await around.agent.controller.failover("test", reaffirm=True)
    assert (answer.result, answer.rule.leader) == ("done", "pg2")
