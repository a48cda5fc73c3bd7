"""Module pg_cluster_info against fake agents, and what an operator reads of it."""

import json

import pytest

from module_utils.devmentor_ha.report import lines, seen_from
from module_utils.devmentor_ha.rules import next_rule
from module_utils.devmentor_ha.verdict import judge
from tests.unit.ha import statuses
from tests.unit.ha.fake_agents import write_host
from tests.unit.ha.statuses import NODES, POOLERS, RULE

LATER = next_rule([RULE], "pg2", 2)


@pytest.fixture
def whole(cluster):
    cluster.statuses = statuses.cluster()
    return cluster


def test_a_cluster_in_order(run, whole):
    result = run("pg_cluster_info")
    assert (result["failed"], result["changed"], result["state"]) == (False, False, "healthy")
    assert (result["leader"], result["rule"], result["reasons"]) == ("pg1", RULE.as_dict(), [])
    assert whole.sent == []


def test_the_silent_are_named_and_do_not_fail_it(run, whole):
    del whole.statuses["pg4"], whole.statuses["pool2"]
    result = run("pg_cluster_info", check=True)
    assert (result["failed"], result["state"]) == (False, "degraded")
    assert {reason["node"] for reason in result["reasons"]} == {"pg4", "pool2"}
    assert all(reason["remedy"] for reason in result["reasons"])


def test_hosts_known_to_be_down_are_not_missed(run, whole):
    del whole.statuses["pool2"]
    assert run("pg_cluster_info", away=["pool2"])["state"] == "healthy"


def test_it_waits_for_a_state(run, whole, monkeypatch):
    from ansible.module_utils.devmentor_ha import report

    asked = []

    def examine(agents, away, limit_s):
        asked.append(limit_s)
        answers = statuses.cluster()
        if len(asked) < 3:
            del answers["pg1"]
            for name in NODES[1:]:
                answers[name]["postgres"]["streaming"] = False
        return judge(NODES, POOLERS, answers, {}, away)

    monkeypatch.setattr(report, "examine", examine)
    assert run("pg_cluster_info", wait=30, timeout=0.1)["state"] == "healthy"
    assert asked == [0.1] * 3
    del asked[:]
    assert run("pg_cluster_info", states=["no_leader"], wait=30, timeout=0.1)["state"] == "no_leader"
    assert len(asked) == 1
    del asked[:]
    assert run("pg_cluster_info", timeout=0.1)["state"] == "no_leader"


def test_without_an_agent_the_remedy_is_named(run, whole, tmp_path):
    result = run("pg_cluster_info", env_file=str(tmp_path / "absent.env"))
    assert result["failed"]
    assert "site.yml --tags pgagent" in result["msg"]


def test_the_token_is_never_shown(run, whole, tmp_path):
    assert "a token" not in json.dumps(run("pg_cluster_info"), default=str)
    assert whole.token == "a token"
    (tmp_path / "cluster.json").unlink()
    failed = run("pg_cluster_info")
    assert failed["failed"]
    assert "a token" not in json.dumps(failed, default=str)


def test_a_host_with_a_pooler_alone_asks_as_well(run, whole, tmp_path):
    write_host(tmp_path, "pool1", NODES, POOLERS)
    assert run("pg_cluster_info")["state"] == "healthy"


@pytest.mark.parametrize("timeout", [0, 31])
def test_a_limit_out_of_range(run, whole, timeout):
    assert "0.1..30" in run("pg_cluster_info", timeout=timeout)["msg"]


def seen(answers):
    return judge(NODES, POOLERS, answers).as_dict()


def test_what_is_read():
    answers = statuses.cluster()
    answers["pg3"]["postgres"]["streaming"] = False
    found = lines(seen(answers))
    assert found[0].startswith("degraded: pg1 leads, rule 1.0: pg1 over 2 of pg2, pg3, pg4 (")
    assert found[1] == "  pg1    leader    rule 1.0, promise 1, timeline 1, at 0/E185AC0"
    assert "  pool1  pooler    running, rule 1.0, to pg1 10.0.0.1" in found
    assert found[-1].startswith("- pg3: follows and does not stream. ")


def test_nobody_answered():
    assert lines(seen({}))[0].startswith("unknown: no committed rule is known (the agents' answers do not tell")


def test_the_side_that_sees_most_is_shown_and_the_other_is_named():
    """pg1 was cut off and knows neither the others nor the later rule."""
    cut_off = {"pg1": statuses.cluster()["pg1"]}
    rest = {name: status for name, status in statuses.cluster(LATER).items() if name != "pg1"}
    host, found = seen_from({"pg1": seen(cut_off), "pg3": seen(rest), "pg4": seen(rest)})
    assert host == "pg3"
    assert found[0].startswith("degraded: pg2 leads, rule 2.0")
    assert [line for line in found if line.startswith("!")] == [
        "! pg1 sees it otherwise: degraded: pg1 leads, rule 1.0: pg1 over 2 of pg2, pg3, pg4"
    ]


def test_no_host_no_verdict():
    with pytest.raises(ValueError, match="no host gave a verdict"):
        seen_from({})
