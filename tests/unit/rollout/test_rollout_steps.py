"""The plan of a rolling update: order, what is left to do, whom a rollback takes back."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

_spec = importlib.util.spec_from_file_location(
    "rollout_steps_filters", Path(__file__).resolve().parents[3] / "filter_plugins/rollout_steps.py"
)
assert _spec is not None
assert _spec.loader is not None
plan = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plan)

TIERS: dict[str, dict[str, Any]] = {
    "postgres": {"group": "postgres", "mode": "one_out", "impact": "a moment", "roles": ["postgres"]},
    "qwen": {
        "group": ["qwen", "qwen_standby"], "mode": "slot", "impact": "none", "roles": ["qwen"], "app": "qwen",
        "standbys": "qwen_standby",
    },
}  # fmt: skip
ENGINE = {
    "group": ["qwen", "qwen_standby", "pbml"], "mode": "drained", "impact": "one engine fewer", "roles": ["llamacpp"],
    "standbys": "qwen_standby", "backend": "qwen",
}  # fmt: skip
GROUPS = {"postgres": ["h1", "h2", "h3"], "qwen": ["h1", "h2"], "qwen_standby": ["h9"], "offline": ["h9"]}
LIVE = ["h1", "h2", "h3"]
CHANGES = {host: {"postgres": ["Configure"], "qwen": ["Install"]} for host in LIVE}


def steps(verb: str = "update", **change: Any) -> list[tuple[str, str]]:
    given: dict[str, Any] = {"journal": {}, "changes": CHANGES, "last": {}, **change}
    found = plan.rollout_steps(list(TIERS), TIERS, GROUPS, LIVE, verb, **given)
    return [(step["tier"], step["host"]) for step in found]


def record(tier: str, host: str, phase: str) -> dict[str, str]:
    return {"tier": tier, "host": host, "phase": phase}


def test_tiers_go_in_order_and_the_leader_last() -> None:
    assert steps(last={"postgres": "h1"}) == [
        ("postgres", "h2"), ("postgres", "h3"), ("postgres", "h1"), ("qwen", "h1"), ("qwen", "h2"),
    ]  # fmt: skip


def test_hosts_that_would_not_change_and_hosts_that_are_offline_are_left_alone() -> None:
    assert steps(changes={"h2": {"qwen": ["Install"], "postgres": []}, "h9": {"qwen": ["Install"]}}) == [("qwen", "h2")]
    assert steps(changes={}) == []


def test_one_host_alone_can_be_asked_for() -> None:
    assert steps(only_host="h2") == [("postgres", "h2"), ("qwen", "h2")]


def test_the_first_of_a_tier_is_its_canary() -> None:
    found = plan.rollout_steps(list(TIERS), TIERS, GROUPS, LIVE, "update", {}, CHANGES, {})
    assert [(s["tier"], s["host"]) for s in found if s["canary"]] == [("postgres", "h1"), ("qwen", "h1")]


@pytest.mark.parametrize("phase", ["began", "drained", "failed"])
def test_a_turn_that_was_begun_and_not_ended_is_done_again_without_any_change(phase: str) -> None:
    journal = {"run": "r1", "state": "running", "steps": [record("qwen", "h1", "done"), record("qwen", "h2", phase)]}
    assert steps(changes={}, journal=journal) == [("qwen", "h2")]
    # What is finished is history.
    assert steps(changes={}, journal={**journal, "state": "finished"}) == []


def test_a_turn_that_went_back_is_whole() -> None:
    journal = {
        "run": "r1",
        "state": "failed",
        "steps": [record("qwen", "h2", "failed"), record("qwen", "h2", "went_back")],
    }
    assert steps(changes={}, journal=journal) == []


def test_a_restart_takes_every_host_once_also_over_an_interruption() -> None:
    assert len(steps("restart", changes={})) == 5
    journal = {"run": "r1", "state": "running", "steps": [record("postgres", host, "done") for host in LIVE]}
    assert steps("restart", changes={}, journal=journal) == [("qwen", "h1"), ("qwen", "h2")]


def test_a_rollback_takes_back_what_was_touched() -> None:
    journal = {
        "run": "r1", "state": "failed",
        "steps": [record("qwen", "h1", "done"), record("qwen", "h2", "failed"), record("qwen", "h2", "went_back")],
    }  # fmt: skip
    assert steps("rollback", changes={}, journal=journal) == [("qwen", "h1")]
    assert steps("rollback", changes={}, journal={**journal, "state": "finished"}) == [("qwen", "h1")]
    assert steps("rollback", changes={}, journal={**journal, "kind": "restart", "state": "finished"}) == []


def test_what_has_no_releases_is_not_said_to_go_back() -> None:
    journal = {"run": "r1", "kind": "update", "state": "failed", "steps": [record("postgres", "h2", "done")]}
    with pytest.raises(AnsibleFilterError, match=r"postgres on h2 has no release.*rollout_abandon=r1"):
        steps("rollback", changes={}, journal=journal)


def turns(tier: str, live: list[str], entry: dict[str, Any] = ENGINE) -> list[tuple[str, str, str, str]]:
    groups = {**GROUPS, "pbml": ["h3"]}
    found = plan.rollout_steps([tier], {tier: entry}, groups, live, "restart", {}, {}, {})
    return [(step["host"], step["mode"], step["stand_in"], step["impact"]) for step in found]


def test_a_live_standby_host_serves_in_the_place_of_one_that_is_drained() -> None:
    assert turns("llamacpp", [*LIVE, "h9"]) == [
        ("h1", "host", "h9", "none, h9 serves meanwhile"),
        ("h2", "host", "h9", "none, h9 serves meanwhile"),
        ("h9", "idle", "", "none, it stands by"),
        ("h3", "drained", "", "one engine fewer"),
    ]


def test_without_a_live_standby_host_there_is_one_engine_fewer() -> None:
    assert turns("llamacpp", LIVE) == [(host, "drained", "", "one engine fewer") for host in LIVE]


def test_where_there_is_room_beside_it_a_standby_host_is_not_needed_and_is_only_brought_up_to_date() -> None:
    found = turns("qwen", [*LIVE, "h9"], TIERS["qwen"])
    assert [(host, mode, stand_in) for host, mode, stand_in, _ in found] == [
        ("h1", "slot", ""), ("h2", "slot", ""), ("h9", "idle", ""),
    ]  # fmt: skip


def test_leaders_are_found_in_what_hosts_said() -> None:
    raft = {"json": {"result": {"peer_id": 2, "raft_info": {"leader": 2}}}}
    other = {"json": {"result": {"peer_id": 1, "raft_info": {"leader": 2}}}}
    hostvars = {
        "h1": {"__rollout_raft": other, "ansible_facts": {"all_ipv4_addresses": ["192.0.2.9"]}},
        "h2": {"__rollout_raft": raft, "ansible_facts": {}},
    }
    groups = {"qdrant": ["h1", "h2"], "gateway": ["h1", "h2"]}
    assert plan.rollout_last(groups, hostvars, "h3", "192.0.2.9") == {"postgres": "h3", "qdrant": "h2", "gateway": "h1"}
    # Peers that did not answer and a platform without a virtual address: the inventory's order.
    assert plan.rollout_last(groups, {"h1": {}, "h2": {"__rollout_raft": {}}}, "", "") == {"postgres": ""}


def test_the_plan_is_readable() -> None:
    found = plan.rollout_steps(["qwen"], TIERS, GROUPS, LIVE, "update", {}, CHANGES, {})
    lines = plan.rollout_table(found, "update", {})
    assert lines[0] == "update: 2 steps, one host at a time"
    assert lines[1].split() == ["1.", "qwen", "h1", "slot", "impact:", "none", "(canary)", "-", "Install"]
    assert plan.rollout_table([], "update", {}) == [
        "Nothing to do: every host of these tiers is as the inventory wants it."
    ]
    assert "goes on with r7" in plan.rollout_table(found, "update", {"run": "r7", "state": "failed"})[1]


def test_tiers_are_named_one_or_several_or_all() -> None:
    assert plan.rollout_tiers("all", TIERS) == ["postgres", "qwen"]
    assert plan.rollout_tiers("qwen, postgres", TIERS) == ["postgres", "qwen"]
    for wrong in ("", "quen", "all,quen"):
        with pytest.raises(AnsibleFilterError, match="postgres, qwen"):
            plan.rollout_tiers(wrong, TIERS)
