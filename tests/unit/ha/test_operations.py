"""Modules pg_failover, pg_switchover, pg_rejoin, pg_restart and pgbouncer_pool against fake agents."""

import os
import time

import pytest

from module_utils.devmentor_ha.rules import first_rule, next_rule
from tests.unit.ha.fake_agents import refusal, silence, status

POOLERS = ["pool1", "pool2"]
FIRST = first_rule("pg1", ["pg2", "pg3", "pg4"])
NEXT = next_rule([FIRST], "pg3", 2)


def outcome(result, reasons=(), rule=None, **more):
    return {
        "outcome": result,
        "reasons": list(reasons),
        "epoch": 2,
        "rule": rule.as_dict() if rule else None,
        "before": FIRST.as_dict(),
        "steps": [{"step": "begin", "at_s": 0.0}],
        "stall_s": None,
        **more,
    }


# pg_failover


def test_a_lost_leader_is_replaced_by_a_followers_agent(run, cluster):
    del cluster.statuses["pg1"]
    cluster.answers["failover"] = outcome("done", rule=NEXT)
    result = run("pg_failover", reason="burnt")
    assert result["changed"]
    assert (result["rule"], result["controller"]) == (NEXT.as_dict(), "pg2")
    assert 'leader: "pg1"' in result["diff"]["before"]
    assert 'leader: "pg3"' in result["diff"]["after"]
    [(node, body)] = cluster.calls("failover")
    assert node == "pg2"
    assert body == {"check": False, "force": False, "target": None, "force_data_loss": None, "reason": "burnt"}


def test_a_node_whose_server_is_down_acts_only_if_there_is_no_other(run, cluster):
    cluster.answers["failover"] = outcome("done", rule=NEXT)
    cluster.statuses["pg2"]["postgres"]["state"] = "stopped"
    run("pg_failover")
    cluster.statuses = {"pg2": cluster.statuses["pg2"]}
    run("pg_failover")
    assert [node for node, _ in cluster.calls("failover")] == ["pg3", "pg2"]


def test_a_healthy_leader_stays(run, cluster):
    cluster.answers["failover"] = outcome("refused", ["the leader pg1 is healthy: it answers and leads rule 1.0"])
    result = run("pg_failover")
    assert result["failed"]
    assert "pg2: refused: the leader pg1 is healthy" in result["msg"]
    assert "Nothing was changed" in result["msg"]
    assert (result["outcome"], result["epoch"], result["steps"][0]["step"]) == ("refused", 2, "begin")


@pytest.mark.parametrize("result", ["aborted", "unknown"])
def test_what_did_not_end_well_fails_with_its_steps(run, cluster, result):
    cluster.answers["failover"] = outcome(result, ["pg3: why"])
    answer = run("pg_failover")
    assert answer["failed"]
    assert (answer["outcome"], answer["reasons"], answer["epoch"]) == (result, ["pg3: why"], 2)


def test_failover_in_check_mode_is_a_plan(run, cluster):
    cluster.answers["failover"] = lambda body: outcome("planned" if body["check"] else "done", ["pg3 would lead"])
    result = run("pg_failover", check=True, force=True)
    assert (result["failed"], result["changed"], result["reasons"]) == (False, True, ["pg3 would lead"])
    assert all(body["check"] for _, _, body in cluster.sent)
    assert "epoch: 2" in result["diff"]["after"]


def test_the_epoch_of_accepted_loss_is_passed_on(run, cluster):
    cluster.answers["failover"] = outcome("done", rule=NEXT)
    run("pg_failover", force_data_loss=7, target="pg3")
    assert cluster.calls("failover")[0][1]["force_data_loss"] == 7
    assert cluster.calls("failover")[0][1]["target"] == "pg3"


def test_no_follower_answers(run, cluster):
    cluster.statuses = {"pg1": cluster.statuses["pg1"]}
    result = run("pg_failover")
    assert "No agent of a follower answers" in result["msg"]
    assert result["silent"] == ["pg2", "pg3", "pg4"]
    assert cluster.sent == []


def test_a_failover_without_an_answer_is_unknown(run, cluster):
    cluster.answers["pg2", "failover"] = silence("pg2")
    result = run("pg_failover")
    assert result["outcome"] == "unknown"
    assert "is not known" in result["msg"]


# pg_switchover


def test_the_targets_own_agent_moves_the_lead(run, cluster):
    cluster.answers["switchover"] = outcome("done", rule=NEXT, stall_s=0.8)
    result = run("pg_switchover", target="pg3", deadline_s=5)
    assert result["changed"]
    assert result["stall_s"] == 0.8
    assert cluster.calls("switchover") == [("pg3", {"check": False, "target": "pg3", "deadline_s": 5.0})]


def test_a_target_that_leads_is_no_change(run, cluster):
    result = run("pg_switchover", target="pg1")
    assert (result["failed"], result["changed"]) == (False, False)
    assert cluster.sent == []


def test_switchover_in_check_mode_is_a_plan(run, cluster):
    cluster.answers["switchover"] = outcome("planned", ["pg2 would replace pg1 at epoch 2"])
    result = run("pg_switchover", check=True)
    assert result["changed"]
    assert [body["check"] for _, body in cluster.calls("switchover")] == [True]


def test_a_switchover_that_would_not_be_smooth_names_all_reasons(run, cluster):
    cluster.answers["switchover"] = outcome("refused", ["a transaction is 90 s old", "archiving fails on pg1"])
    assert "a transaction is 90 s old; archiving fails on pg1" in run("pg_switchover")["msg"]


def test_a_paused_leader_would_not_come_back_as_a_follower(run, cluster):
    cluster.statuses["pg1"]["paused"] = {"until": time.time() + 60, "reason": "switch"}
    result = run("pg_switchover")
    assert result["outcome"] == "refused"
    assert "pg1 is paused (switch)" in result["msg"]
    assert cluster.sent == []


@pytest.mark.parametrize("name", ["pg_failover", "pg_switchover"])
def test_a_target_that_is_no_node(run, cluster, name):
    assert "pg9: no such node; there are pg1, pg2" in run(name, target="pg9")["msg"]
    assert cluster.sent == []


# pg_rejoin, pg_restart


def test_the_node_itself_rejoins(run, cluster):
    cluster.answers["pg1", "rejoin"] = {"changed": True, "method": "rewind", "why": "it diverged"}
    result = run("pg_rejoin", node="pg1")
    assert (result["changed"], result["method"], result["why"]) == (True, "rewind", "it diverged")
    assert cluster.sent == [("pg1", "rejoin", {"check": False, "method": "auto"})]


def test_a_node_that_streams_is_left_alone(run, cluster):
    cluster.answers["pg2", "rejoin"] = {"changed": False, "method": "none", "why": "it streams from pg1"}
    result = run("pg_rejoin")
    assert (result["changed"], result["node"], result["diff"]) == (False, "pg2", {})


def test_rejoin_in_check_mode_only_asks(run, cluster):
    cluster.answers["rejoin"] = {"changed": True, "method": "reclone", "why": "decided once it is stopped"}
    assert run("pg_rejoin", check=True, method="reclone")["changed"]
    assert cluster.sent == [("pg2", "rejoin", {"check": True, "method": "reclone"})]


def test_a_refused_rejoin_says_where_to_look(run, cluster):
    cluster.answers["rejoin"] = refusal("pg2", "the leader pg1 does not answer, or does not lead yet")
    result = run("pg_rejoin")
    assert result["outcome"] == "refused"
    assert "the leader pg1 does not answer" in result["msg"]
    assert "journalctl -u pgagent on pg2" in result["msg"]


def test_a_restart_only_for_what_is_newer_than_the_server(run, cluster, tmp_path):
    cluster.answers["restart"] = {"changed": True}
    program = tmp_path / "postgres"
    program.write_text("")
    os.utime(program, (1, 1))  # as a package's file: built long ago
    absent = str(tmp_path / "absent")
    cluster.statuses["pg2"]["postgres"]["started_at"] = program.stat().st_ctime + 10
    assert not run("pg_restart", newer=[str(program), absent])["changed"]
    assert cluster.sent == []
    cluster.statuses["pg2"]["postgres"]["started_at"] = program.stat().st_ctime - 10
    report = run("pg_restart", newer=[str(program), absent], report_only=True)
    assert (report["changed"], report["outdated"]) == (False, [str(program)])
    assert cluster.sent == []
    assert run("pg_restart", newer=[str(program), absent])["changed"]
    assert cluster.sent == [("pg2", "restart", {"check": False})]


def test_a_restart_in_check_mode_only_asks(run, cluster):
    cluster.answers["restart"] = {"changed": True}
    assert run("pg_restart", check=True, node="pg3")["changed"]
    assert cluster.sent == [("pg3", "restart", {"check": True})]


def test_a_server_that_does_not_run_is_not_judged(run, cluster, tmp_path):
    cluster.statuses["pg2"]["postgres"]["state"] = "stopped"
    assert "PostgreSQL is stopped" in run("pg_restart", newer=[str(tmp_path)], timeout=0)["msg"]


def test_the_leader_is_not_restarted(run, cluster):
    assert "pg1 leads. Move the lead" in run("pg_restart", node="pg1")["msg"]
    assert cluster.sent == []


def test_a_follower_that_commits_need_is_only_restarted_if_that_is_accepted(run, cluster):
    cluster.answers["restart"] = {"changed": True}
    cluster.statuses["pg4"]["postgres"]["streaming"] = False
    result = run("pg_restart", node="pg2", timeout=0)
    assert "rule 1.0 needs 2 of pg2, pg3, pg4, and pg3 of the others stream" in result["msg"]
    assert cluster.sent == []
    assert run("pg_restart", node="pg2", timeout=0, allow_stall=True)["changed"]


def test_a_node_that_does_not_stream_yet_is_waited_for(run, cluster, monkeypatch):
    from ansible.module_utils.devmentor_ha import operations

    cluster.answers["restart"] = {"changed": True}
    cluster.statuses["pg2"]["postgres"]["streaming"] = False
    assert "pg2 does not stream from pg1" in run("pg_restart", timeout=0)["msg"]

    def stream(_seconds):
        cluster.statuses["pg2"]["postgres"]["streaming"] = True

    monkeypatch.setattr(operations.time, "sleep", stream)
    assert run("pg_restart")["changed"]


def test_files_of_this_host_say_nothing_about_another(run, cluster):
    assert "Run it on pg3" in run("pg_restart", node="pg3", newer=["/usr/bin/env"])["msg"]
    assert cluster.sent == []


# pgbouncer_pool


@pytest.fixture
def poolers(cluster):
    """Two poolers that are not paused, and answer as they do."""
    state = {name: {"devmentor": False, "devmentor_ro": False, "devmentor_session": False} for name in POOLERS}

    def databases(name):
        return {entry: {"paused": paused, "clients": 1} for entry, paused in state[name].items()}

    def act(name):
        def answer(body):
            before = databases(name)
            for entry in ("devmentor", "devmentor_session"):
                state[name][entry] = body["action"] == "pause"
            return {"before": before, "after": databases(name)}

        return answer

    for name in POOLERS:
        cluster.statuses[name] = {**status(name, None), "pooler": {"databases": databases(name)}}
        cluster.answers[name, "pool"] = act(name)
    cluster.state = state
    return cluster


def test_all_poolers_pause(run, poolers):
    result = run("pgbouncer_pool", action="pause", deadline_s=3)
    assert (result["changed"], result["paused"]) == (True, {"pool1": True, "pool2": True})
    assert poolers.calls("pool") == [(name, {"action": "pause", "deadline_s": 3.0}) for name in POOLERS]


def test_nothing_to_resume(run, poolers):
    result = run("pgbouncer_pool", action="resume")
    assert (result["failed"], result["changed"]) == (False, False)


def test_a_kill_is_always_a_change(run, poolers):
    assert run("pgbouncer_pool", action="kill", nodes=["pool2"])["changed"]
    assert [node for node, _ in poolers.calls("pool")] == ["pool2"]


def test_pools_in_check_mode_are_only_looked_at(run, poolers):
    paused = run("pgbouncer_pool", check=True, action="pause")
    resumed = run("pgbouncer_pool", check=True, action="resume")
    assert (paused["changed"], resumed["changed"]) == (True, False)
    assert poolers.sent == []


def test_one_pooler_that_cannot_pause_lets_none_stay_paused(run, poolers):
    poolers.answers["pool2", "pool"] = refusal("pool2", "transactions do not end in 2 s; resumed")
    result = run("pgbouncer_pool", action="pause")
    assert result["failed"]
    assert "transactions do not end in 2 s" in result["msg"]
    assert "Resumed: pool1" in result["msg"]
    assert poolers.state["pool1"]["devmentor"] is False


def test_a_pooler_that_was_paused_before_stays_so(run, poolers):
    poolers.statuses["pool1"]["pooler"]["databases"]["devmentor"]["paused"] = True
    poolers.answers["pool2", "pool"] = refusal("pool2", "transactions do not end in 2 s; resumed")
    run("pgbouncer_pool", action="pause")
    assert [node for node, body in poolers.calls("pool") if body["action"] == "resume"] == ["pool2"]


def test_a_pooler_without_an_agent_is_named_before_anything_is_done(run, poolers):
    del poolers.statuses["pool1"]
    result = run("pgbouncer_pool", action="pause")
    assert result["silent"] == ["pool1"]
    assert poolers.sent == []


def test_the_deadline_has_a_range(run, poolers):
    assert "0.1..60" in run("pgbouncer_pool", action="pause", deadline_s=0)["msg"]
    assert poolers.sent == []
