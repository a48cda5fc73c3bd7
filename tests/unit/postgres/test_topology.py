"""The decision that must never make a second primary, and must never undo a failover."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils.devmentor.postgres_topology import ABSENT, PRESENT, PRISTINE, UNKNOWN, Node, decide

HOSTS = ["db1", "db2", "db3", "db4"]
QUORUM = ("restore_command", "synchronous_standby_names")


def primary(host: str, timeline: int = 1, **more: object) -> Node:
    return dataclasses.replace(Node(host, PRESENT, True, False, "77", timeline, seeded=QUORUM), **more)


def replica(host: str, timeline: int = 1, **more: object) -> Node:
    return dataclasses.replace(Node(host, PRESENT, True, True, "77", timeline), **more)


def stopped(node: Node) -> Node:
    return dataclasses.replace(node, running=False)


def absent(host: str) -> Node:
    return Node(host, ABSENT)


def down(host: str) -> Node:
    return Node.unreachable(host, "no route to host")


def test_nothing_anywhere_bootstraps_the_named_host():
    plan = decide([absent(host) for host in HOSTS], "db2")
    assert plan.bootstrap
    assert plan.primary == "db2"
    assert plan.actions == {"db1": "clone", "db2": "initdb", "db3": "clone", "db4": "clone"}
    assert not plan.synchronous_seeded


def test_an_empty_cluster_of_the_package_counts_as_nothing():
    nodes = [Node("db1", PRISTINE, standby=False, system_identifier="1", timeline=1), absent("db2")]
    assert decide(nodes, "db1").actions == {"db1": "initdb", "db2": "clone"}


def test_bootstrap_host_must_be_in_the_group():
    plan = decide([absent("db1")], "web1")
    assert "'web1'" in plan.refusal
    assert "db1" in plan.refusal


def test_after_a_failover_the_inventory_is_not_asked():
    plan = decide([replica("db1", 2), primary("db2", 2), replica("db3", 2), replica("db4", 2)], "db1")
    assert plan.primary == "db2"
    assert not plan.bootstrap
    assert set(plan.actions.values()) == {"keep"}
    assert plan.synchronous_seeded


def test_two_primaries_are_refused_by_name():
    plan = decide([primary("db1", 1), primary("db2", 2), replica("db3")], "db1")
    assert "db1 (timeline 1), db2 (timeline 2)" in plan.refusal
    assert not plan.actions


def test_different_databases_are_refused():
    plan = decide([primary("db1"), replica("db2", system_identifier="88")], "db1")
    assert "77 on db1" in plan.refusal
    assert "88 on db2" in plan.refusal


def test_a_dead_host_does_not_stop_the_rest():
    plan = decide([primary("db1"), replica("db2"), down("db3"), absent("db4")], "db1")
    assert not plan.refusal
    assert plan.actions == {"db1": "keep", "db2": "keep", "db4": "clone"}
    assert plan.unknown == {"db3": "no route to host"}


def test_a_dead_host_and_no_primary_is_refused_even_when_the_rest_is_empty():
    plan = decide([absent("db1"), absent("db2"), down("db3")], "db1")
    assert "db3: no route to host" in plan.refusal
    assert not plan.actions


def test_all_off_and_on_starts_the_one_that_led():
    plan = decide([stopped(primary("db1", 2)), stopped(replica("db2", 2)), replica("db3", 2)], "db2")
    assert plan.primary == "db1"
    assert plan.actions == {"db1": "start", "db2": "start", "db3": "keep"}


def test_a_stopped_former_primary_is_not_started_beside_the_new_one():
    plan = decide([stopped(primary("db1", 1)), primary("db2", 2), replica("db3", 2)], "db1")
    assert plan.primary == "db2"
    assert "db1" not in plan.actions
    assert "pg_rewind" in plan.blocked["db1"]
    assert plan.actions["db3"] == "keep"


def test_a_former_primary_that_came_back_alone_does_not_lead():
    plan = decide([primary("db1", 1), down("db2"), replica("db3", 2), replica("db4", 2)], "db1")
    assert "db3 (timeline 2)" in plan.refusal
    assert "pg_status.yml" in plan.refusal
    assert not plan.actions


def test_a_stopped_former_primary_behind_the_replicas_is_not_started():
    plan = decide([stopped(primary("db1", 1)), replica("db2", 2)], "db1")
    assert "later one" in plan.refusal
    assert not plan.actions


def test_replicas_without_a_primary_wait_for_the_failover():
    plan = decide([replica("db1"), replica("db2")], "db1")
    assert "all replicas" in plan.refusal


def test_two_stopped_primaries_are_refused():
    plan = decide([stopped(primary("db1")), stopped(primary("db2"))], "db1")
    assert "db1, db2 all stopped as primary" in plan.refusal


def test_a_primary_to_be_made_must_be_in_the_run():
    plan = decide([absent("db1"), absent("db2")], "db1", frozenset({"db2"}))
    assert "--limit" in plan.refusal
    assert decide([primary("db1"), replica("db2")], "db1", frozenset({"db2"})).actions["db2"] == "keep"


READABLE = {
    "data": "present",
    "running": True,
    "standby": False,
    "system_identifier": "1",
    "timeline": 1,
    "error": "",
    "seeded": [],
}


def test_a_whole_report_is_known():
    assert Node.from_report("db1", READABLE).known


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"data": "present"},
        {**READABLE, "data": "maybe"},
        {**READABLE, "standby": None},
        {**READABLE, "system_identifier": ""},
        {**READABLE, "running": False, "standby": True, "timeline": "x"},
    ],
)
def test_a_report_that_lacks_something_is_unknown(report):
    assert not Node.from_report("db1", report).known


@st.composite
def clusters(draw):
    nodes = []
    for host in HOSTS:
        data = draw(st.sampled_from([ABSENT, PRISTINE, PRESENT, UNKNOWN]))
        nodes.append(
            Node(
                host,
                data,
                running=data == PRESENT and draw(st.booleans()),
                standby=draw(st.sampled_from([True, False, None])),
                system_identifier=draw(st.sampled_from(["77", "77", "77", "88", ""])),
                timeline=draw(st.integers(0, 3)),
            )
        )
    return nodes


@given(clusters(), st.sampled_from(HOSTS))
def test_no_plan_makes_or_leaves_two_primaries(nodes, bootstrap):
    plan = decide(nodes, bootstrap)
    by_host = {node.host: node for node in nodes}
    if plan.refusal:
        assert not plan.actions
        return
    leads = {
        host
        for host, action in plan.actions.items()
        if action == "initdb" or (action in ("keep", "start") and by_host[host].standby is False)
    }
    assert leads == {plan.primary}
    for host, action in plan.actions.items():
        node = by_host[host]
        assert node.known
        assert action not in ("initdb", "clone") or node.data in (ABSENT, PRISTINE)
    made = plan.actions[plan.primary] != "keep"
    assert not (made and any(not node.known for node in nodes))


@given(clusters(), st.sampled_from(HOSTS), st.sampled_from(HOSTS))
def test_the_inventory_decides_only_where_nobody_has_data(nodes, one, other):
    if any(node.data == PRESENT for node in nodes):
        assert decide(nodes, one) == decide(nodes, other)
