"""The failover agents as verify judges them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from verify_doubles import plan, service

from module_utils.devmentor.checks_base import Failed
from module_utils.devmentor.checks_failover import agent_status, judge_node, judge_pooler

RULE = {"epoch": 3, "sub": 1, "leader": "pg2", "followers": ["pg1", "pg3"], "w": 1, "prior_epoch": 3, "prior_sub": 0}


def node(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "node": name,
        "observe_only": False,
        "paused": {"until": 0, "reason": ""},
        "promise": {"epoch": 3, "controller": "", "at": 0},
        "committed": RULE,
        "leading": RULE if name == "pg2" else None,
        "following": {"epoch": 3, "leader": "pg2"},
        "suspects": None,
        "writes_blocked": False,
        "postgres": {"streaming": name != "pg2"},
        **changes,
    }


def test_a_leader_and_a_follower_that_take_part() -> None:
    assert judge_node(node("pg2")) == "leads rule 3.1, 1 of pg1, pg3 acknowledge"
    assert judge_node(node("pg1")) == "follows pg2, rule 3.1"
    assert judge_node(node("pg1", paused={"until": time.time() - 1, "reason": "over"})) == "follows pg2, rule 3.1"


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("pg1", {"committed": None}, "no rule is committed"),
        ("pg1", {"observe_only": True}, "does nothing by itself: observe_only"),
        ("pg1", {"paused": {"until": time.time() + 600, "reason": "work"}}, "does nothing by itself: paused"),
        ("pg1", {"promise": {"epoch": 4, "controller": "x", "at": 0}}, "promised epoch 4, and rule 3.1 is the last committed"),
        ("pg1", {"suspects": {"leader": "pg2", "reason": "no answer"}}, "suspects pg2: no answer"),
        ("pg1", {"following": {"epoch": 2, "leader": "pg4"}}, "does not stream from pg2"),
        ("pg1", {"postgres": {"state": "stopped"}}, "does not stream from pg2"),
        ("pg2", {"leading": None}, "is to lead rule 3.1 and does not"),
        ("pg2", {"writes_blocked": True}, "too few of its followers stream"),
        ("pg4", {}, "is not in rule 3.1 (pg2, pg1, pg3)"),
    ],
)
def test_a_node_that_does_not(name: str, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Failed) as failed:
        judge_node(node(name, **changes))
    assert complaint in str(failed.value)


def test_a_pooler_follows_a_rule() -> None:
    pooler = {"state": "running", "epoch": 3, "sub": 1, "leader": "pg2"}
    assert judge_pooler({"pooler": pooler}) == "leads to pg2, rule 3.1"
    for changes, complaint in (({"state": "silent"}, "does not answer"), ({"epoch": 0}, "no rule yet")):
        with pytest.raises(Failed, match=complaint):
            judge_pooler({"pooler": {**pooler, **changes}})


def test_the_agent_is_asked_with_its_token(tls: dict[str, str]) -> None:
    with service(tls, {("GET", "/v1/status"): (200, node("pg1"))}) as (port, agent):
        asked = plan(tls, ports={"pgagent": port}, secrets={"agent_token": "sesame"})
        assert agent_status(asked)["node"] == "pg1"
    assert agent.asked[0][2]["Authorization"] == "Bearer sesame"
