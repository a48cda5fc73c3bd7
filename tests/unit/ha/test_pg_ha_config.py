"""Module pg_ha_config against fake agents."""

import time

import pytest

from module_utils.devmentor_ha.rules import changed_followers, first_rule
from tests.unit.ha.fake_agents import refusal, silence, status

FIRST = first_rule("pg1", ["pg2", "pg3", "pg4"])
NODES = ["pg1", "pg2", "pg3", "pg4"]


@pytest.fixture
def fresh(cluster):
    """No rule yet, pg3 runs as the primary."""
    cluster.statuses = {node: status(node, None) for node in NODES}
    for node in NODES:
        cluster.answers[node, "members"] = refusal(node, f"{node} does not run as the primary (running)")
    rule = first_rule("pg3", ["pg1", "pg2", "pg4"]).as_dict()
    cluster.answers["pg3", "members"] = lambda body: {"changed": True, "rule": None if body["check"] else rule}
    return cluster


def test_the_primary_is_found_by_its_agent_accepting(run, fresh):
    result = run("pg_ha_config", action="bootstrap")
    assert result["changed"]
    assert result["rule"]["leader"] == "pg3"
    assert 'leader: "pg3"' in result["diff"]["after"]
    assert fresh.calls("members")[-1] == ("pg3", {"bootstrap": True, "check": False})


def test_a_cluster_with_a_rule_is_left_alone(run, cluster):
    result = run("pg_ha_config", action="bootstrap")
    assert not result["changed"]
    assert result["rule"] == FIRST.as_dict()
    assert cluster.sent == []


def test_the_first_rule_in_check_mode_only_asks(run, fresh):
    result = run("pg_ha_config", check=True, action="bootstrap")
    assert result["changed"]
    assert result["leader"] == "pg3"
    assert all(body["check"] for _, body in fresh.calls("members"))


def test_check_mode_works_where_no_agent_is_installed(run, cluster, tmp_path):
    result = run("pg_ha_config", check=True, action="bootstrap", env_file=str(tmp_path / "absent.env"))
    assert (result["failed"], result["changed"]) == (False, True)
    assert cluster.sent == []


def test_without_an_agent_the_remedy_is_named(run, tmp_path):
    result = run("pg_ha_config", action="bootstrap", env_file=str(tmp_path / "absent.env"))
    assert result["failed"]
    assert "site.yml --tags pgagent" in result["msg"]


def test_what_does_not_answer_may_be_the_primary(run, fresh):
    del fresh.statuses["pg3"]
    result = run("pg_ha_config", action="bootstrap", timeout=0)
    assert result["failed"]
    assert result["silent"] == ["pg3"]
    assert "The primary may be one of pg3" in result["msg"]
    assert [node for node, _ in fresh.calls("members")] == ["pg1", "pg2", "pg4"]


def test_a_replica_that_streams_late_is_waited_for(run, fresh, monkeypatch):
    from ansible.module_utils.devmentor_ha import cluster_config

    rule = fresh.answers["pg3", "members"]({"check": False})
    tries = []

    def late(body):
        tries.append(body)
        if len(tries) < 3:
            raise refusal("pg3", "no replica streams")
        return rule

    fresh.answers["pg3", "members"] = late
    monkeypatch.setattr(cluster_config, "RETRY_S", 0)
    assert run("pg_ha_config", action="bootstrap", timeout=30)["changed"]
    assert len(tries) == 3


def pause_answer(body):
    now = 0 if body["until"] else 5000.0
    return {"changed": True, "before": {"until": now}, "paused": {"until": body["until"], "reason": body["reason"]}}


def test_a_pause_goes_to_every_node_and_ends_by_itself(run, cluster):
    cluster.answers["pause"] = pause_answer
    result = run("pg_ha_config", action="pause", minutes=20, reason="switch")
    assert result["changed"]
    assert [node for node, _ in cluster.calls("pause")] == NODES
    body = cluster.calls("pause")[0][1]
    assert body["until"] == pytest.approx(time.time() + 1200, abs=5)
    assert (body["reason"], body["check"]) == ("switch", False)
    assert "pg1: 0\n" in result["diff"]["before"]


def test_resuming_one_node(run, cluster):
    cluster.answers["pause"] = pause_answer
    assert run("pg_ha_config", action="resume", nodes=["pg3"])["changed"]
    assert cluster.calls("pause") == [("pg3", {"until": 0, "reason": "", "check": False})]


def test_a_pause_in_check_mode_says_so_to_the_agents(run, cluster):
    cluster.answers["pause"] = pause_answer
    assert run("pg_ha_config", check=True, action="pause")["changed"]
    assert all(body["check"] for _, body in cluster.calls("pause"))


def test_a_node_that_misses_the_pause_fails_it_unless_it_is_known_to_be_down(run, cluster):
    cluster.answers["pause"] = pause_answer
    cluster.answers["pg4", "pause"] = silence("pg4")
    result = run("pg_ha_config", action="pause")
    assert result["failed"]
    assert "pg4: no answer" in result["msg"]
    assert "Done on pg1, pg2, pg3" in result["msg"]
    assert not run("pg_ha_config", action="pause", away=["pg4"])["failed"]


def test_a_replica_leaves_by_the_leader(run, cluster):
    smaller = changed_followers(FIRST, ["pg2", "pg3"])
    cluster.answers["pg1", "members"] = {"changed": True, "before": FIRST.as_dict(), "rule": smaller.as_dict()}
    result = run("pg_ha_config", action="remove", member="pg4")
    assert cluster.sent == [("pg1", "members", {"remove": "pg4", "check": False})]
    assert result["rule"]["followers"] == ["pg2", "pg3"]
    assert 'followers: ["pg2", "pg3"]' in result["diff"]["after"]


def test_removal_in_check_mode_shows_the_rule_that_would_be(run, cluster):
    cluster.answers["pg1", "members"] = {"changed": True, "before": FIRST.as_dict(), "rule": FIRST.as_dict()}
    result = run("pg_ha_config", check=True, action="remove", member="pg4")
    assert cluster.sent == [("pg1", "members", {"remove": "pg4", "check": True})]
    assert "sub: 1" in result["diff"]["after"]
    assert 'removed: ["pg4"]' in result["diff"]["after"]
    assert result["rule"] == FIRST.as_dict()


def test_without_a_leader_nobody_joins_or_leaves(run, cluster):
    del cluster.statuses["pg1"]
    result = run("pg_ha_config", action="add", member="pg4")
    assert "pg1: no answer" in result["msg"]
    assert cluster.sent == []


def test_a_name_that_is_no_node(run, cluster):
    assert "pg9: no such node" in run("pg_ha_config", action="remove", member="pg9")["msg"]
    assert cluster.sent == []


def test_show_changes_nothing(run, cluster):
    del cluster.statuses["pg4"]
    result = run("pg_ha_config", action="show")
    assert (result["changed"], result["leader"], result["silent"]) == (False, "pg1", ["pg4"])
    assert cluster.sent == []


@pytest.mark.parametrize("minutes", [0, 1441])
def test_a_pause_out_of_range(run, cluster, minutes):
    assert "1..1440" in run("pg_ha_config", action="pause", minutes=minutes)["msg"]
    assert cluster.sent == []
