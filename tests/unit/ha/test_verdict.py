"""The verdict: what is healthy, what is not, and that nothing unknown is taken for good."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.devmentor_ha.rules import changed_followers, next_rule
from module_utils.devmentor_ha.verdict import DEGRADED, FAILING_OVER, HEALTHY, NO_LEADER, UNKNOWN, Verdict, judge
from tests.unit.ha.statuses import NODES, NOW, POOLERS, RULE, cluster, put

LATER = next_rule([RULE], "pg2", 2)
SMALLER = changed_followers(RULE, ["pg2", "pg3"])


def verdict(answers, failures=None) -> Verdict:
    return judge(NODES, POOLERS, answers, failures)


def said(found: Verdict) -> str:
    return "\n".join(map(str, found.reasons))


def test_a_cluster_in_order():
    found = verdict(cluster())
    assert (found.state, found.leader, found.rule, found.reasons) == (HEALTHY, "pg1", RULE, ())
    assert found.nodes["pg1"]["role"] == "leader"
    assert {found.nodes[name]["role"] for name in NODES[1:]} == {"follower"}
    assert json.loads(json.dumps(found.as_dict()))["state"] == "healthy"


def change(answers, path, value):
    """`path`: NODE.KEY.KEY, a number for an entry of a list."""
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = answers
    for step in way:
        place = place[step]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "node", "what"),
    [
        ("pg2.observe_only", True, "pg2", "only observes"),
        ("pg2.paused", {"until": NOW + 60, "reason": "switch"}, "pg2", "paused until 16:27:22 UTC: switch"),
        ("pg3.promise", {"epoch": 4, "controller": "pg4/ab", "at": NOW - 60}, "pg3", "promised epoch 4 to pg4/ab"),
        ("pg2.suspects", {"leader": "pg1", "reason": "timeout"}, "pg2", "suspects pg1: timeout"),
        ("pg1.unwell", "disk full", "pg1", "asks to be replaced: disk full"),
        ("pg4.committed", None, "pg4", "knows no rule, others 1.0"),
        ("pg4.acting", "rejoin", "pg4", "is at rejoin"),
        ("pg3.postgres.state", "stopped", "pg3", "PostgreSQL is stopped"),
        ("pg3.postgres.age_s", 9.0, "pg3", "not seen PostgreSQL for seconds"),
        ("pg3.postgres.in_recovery", False, "pg3", "runs as a primary and is not the leader"),
        ("pg3.postgres.streaming", False, "pg3", "does not stream"),
        ("pg3.following", {"epoch": 1, "leader": "pg4"}, "pg3", "follows pg4, not pg1"),
        ("pg1.writes_blocked", True, "pg1", "commits wait: fewer than 2 of pg2, pg3, pg4 stream"),
        ("pg1.postgres.replication.0.state", "catchup", "pg2", "pg1 does not stream to it"),
        ("pg1.postgres.replication.0.lag_bytes", 10**9, "pg2", "lags by 1000000000 bytes"),
        ("pg1.postgres.replication.0.lag_bytes", None, "pg2", "lags by None"),
        ("pg1.postgres.slots.1.wal_status", "lost", "pg3", "keeps no WAL for it (lost)"),
        ("pg1.postgres.slots.1.active", False, "pg3", "does not use its slot on pg1"),
        ("pg1.postgres.slots", [], "pg4", "has no replication slot on pg1"),
        ("pg1.postgres.archive.failed_last", True, "pg1", "archive WAL failed"),
        ("pool1.pooler.state", "silent", "pool1", "PgBouncer is silent"),
        ("pool1.pooler.leader", "pg2", "pool1", "follows rule 1.0 of pg2, not 1.0 of pg1"),
        ("pool1.pooler.epoch", 0, "pool1", "follows rule 0.0 of pg1"),
        ("pool1.pooler.databases.devmentor.paused", True, "pool1", "devmentor is paused"),
        ("pool1.pooler.databases.devmentor.host", "10.0.0.2", "pool1", "leads to 10.0.0.2, not to 10.0.0.1"),
        ("pool1.pooler.databases", {}, "pool1", "not all of the platform's databases, but none"),
        ("pool1.observe_only", True, "pool1", "only observes"),
        ("pool1.paused", {"until": NOW + 60, "reason": "x"}, "pool1", "paused until 16:27:22 UTC: x"),
        ("pg2.rule", LATER.as_dict(), "pg2", "newest in its WAL is rule 2.0 of pg2 over 1 of pg3, pg4; 1.0"),
        ("pg1.leading", SMALLER.as_dict(), "pg1", "its agent knows rule 1.0, others 1.1"),
        ("pg1.committing", SMALLER.as_dict(), "pg1", "waits for the acknowledgement of rule 1.1"),
        ("pg1.postgres.synchronous_standby_names", "", "pg1", "synchronous_standby_names is '', not 'ANY 2"),
    ],
)
def test_one_thing_out_of_order(path, value, node, what):
    answers = cluster()
    change(answers, path, value)
    found = verdict(answers)
    assert found.state == DEGRADED
    assert found.leader == "pg1"
    assert any(reason.node == node and what in reason.what for reason in found.reasons), said(found)


def test_a_pooler_that_was_led_elsewhere_is_found_by_the_rule_that_all_know():
    answers = cluster(LATER)
    answers["pool2"] = cluster()["pool2"]
    found = verdict(answers)
    assert found.state == DEGRADED
    assert "pool2: PgBouncer follows rule 1.0 of pg1, not 2.0 of pg2" in said(found)


def test_the_old_leader_left_the_rule_and_joins_again():
    found = verdict(cluster(LATER))
    assert (found.state, found.leader) == (DEGRADED, "pg2")
    assert "pg1: is not in rule 2.0" in said(found)


def test_a_follower_of_another_inventory():
    answers = cluster()
    found = judge(NODES[:3], POOLERS, {name: answers[name] for name in answers if name != "pg4"})
    assert "pg4: is in rule 1.0 and no node" in said(found)
    assert found.state == DEGRADED


@pytest.mark.parametrize("name", [*NODES[1:], *POOLERS])
def test_one_that_is_silent_while_the_leader_leads(name):
    answers = cluster()
    del answers[name]
    found = verdict(answers, {name: f"{name}: no answer to status in 2 s"})
    assert found.state == DEGRADED
    assert f"{name}: no status (no answer to status in 2 s)" in said(found)


def test_a_silent_leader_and_a_quorum_that_knows_of_no_other():
    answers = cluster()
    del answers["pg1"]
    for name in NODES[1:]:
        answers[name]["postgres"]["streaming"] = False
    found = verdict(answers)
    assert (found.state, found.leader) == (NO_LEADER, "")
    assert "nobody leads; the highest committed rule is 1.0 of pg1" in said(found)


@pytest.mark.parametrize("status", [..., {"node": "pg1"}])
def test_a_leader_without_a_status_from_which_followers_stream_may_lead(status):
    """Only its agent is away, or is of another release."""
    answers = cluster()
    put(answers, (), "pg1", status)
    found = verdict(answers)
    assert (found.state, found.leader) == (UNKNOWN, "")
    assert "no status of the leader pg1, and pg2, pg3, pg4 stream from it: it may well lead" in said(found)


def test_without_a_quorum_of_answers_nothing_is_known():
    answers = cluster()
    del answers["pg1"], answers["pg2"], answers["pg3"]
    found = verdict(answers)
    assert found.state == UNKNOWN
    assert "of its followers only pg4 answer" in said(found)
    assert "Bring back pg1, or 2 of pg2, pg3, pg4" in said(found)


def test_nobody_answers():
    found = verdict({})
    assert (found.state, found.rule) == (UNKNOWN, None)
    assert {reason.node for reason in found.reasons} == {"", *NODES, *POOLERS}


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("pg3.acting", "failover 2: fence", "pg3 is at failover 2: fence"),
        ("pg3.promise", {"epoch": 2, "controller": "pg3/ab", "at": NOW - 1}, "pg3 promised epoch 2 to pg3/ab"),
        ("pg2.committing", LATER.as_dict(), "pg2 is about to commit rule 2.0"),
    ],
)
@pytest.mark.parametrize("leader_answers", [True, False])
def test_under_way(path, value, what, leader_answers):
    answers = cluster()
    change(answers, path, value)
    if not leader_answers:
        del answers["pg1"]
    found = verdict(answers)
    assert found.state == FAILING_OVER
    assert what in said(found)


def test_suspicions_count_from_the_quorum_on():
    answers = cluster()
    for name in ("pg2", "pg3"):
        answers[name]["suspects"] = {"leader": "pg1", "reason": "timeout"}
    found = verdict(answers)
    assert found.state == FAILING_OVER
    assert "pg2, pg3 suspect pg1" in said(found)


def test_a_superseded_leader_that_has_not_noticed():
    answers = cluster(LATER)
    answers["pg1"] = cluster()["pg1"]
    found = verdict(answers)
    assert (found.state, found.leader) == (DEGRADED, "pg2")
    assert "pg1: claims to lead rule 1.0, and rule 2.0 is pg2's" in said(found)


def test_two_leaders_of_one_epoch_are_never_explained_away():
    answers = cluster()
    answers["pg2"]["leading"] = {**RULE.as_dict(), "leader": "pg2", "followers": ["pg1", "pg3", "pg4"]}
    assert verdict(answers).state == UNKNOWN


def test_statuses_from_before_and_after_a_change_of_followers():
    """The leader was asked a moment before its change was committed, a follower a moment after."""
    answers = cluster()
    answers["pg2"]["committed"] = SMALLER.as_dict()
    found = verdict(answers)
    assert (found.state, found.leader) == (DEGRADED, "pg1")
    assert "pg1: leads by rule 1.0 of pg1 over 2 of pg2, pg3, pg4; 1.1 of pg1 over 1 of pg2, pg3 is committed" in said(
        found
    )


def test_the_same_number_with_other_followers():
    answers = cluster()
    answers["pg3"]["committed"] = {**RULE.as_dict(), "followers": ["pg2", "pg3", "pg5"]}
    found = verdict(answers)
    assert (found.state, found.leader, found.rule) == (DEGRADED, "pg1", RULE)
    assert "pg3: its agent knows another rule 1.0 than others: 1.0 of pg1 over 2 of pg2, pg3, pg5" in said(found)


@pytest.mark.parametrize("name", NODES)
def test_two_committed_rules_of_one_number_are_never_explained_away(name):
    answers = cluster()
    answers[name]["committed"] = {**RULE.as_dict(), "leader": "pg5"}
    found = verdict(answers)
    assert (found.state, found.rule) == (UNKNOWN, RULE)
    assert f"{name}: its agent knows another rule 1.0" in said(found)


@pytest.mark.parametrize("lost", ["devmentor", "devmentor_ro", "devmentor_session"])
def test_a_pooler_that_lacks_an_entry(lost):
    answers = cluster()
    del answers["pool1"]["pooler"]["databases"][lost]
    found = verdict(answers)
    assert found.state == DEGRADED
    assert "pool1: has not all of the platform's databases, but devmentor" in said(found)


def test_no_rule_yet_and_no_rule_seen_are_two_things():
    answers = cluster()
    for name in NODES:
        answers[name].update(rule=None, committed=None, leading=None, rules=[])
    found = verdict(answers)
    assert (found.state, found.rule) == (NO_LEADER, None)
    assert "there is no rule yet" in said(found)
    del answers["pg4"]
    assert verdict(answers).state == UNKNOWN


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | st.sampled_from([*NODES, NOW]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["node", "leader", "epoch", "until", "name", "state"]), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*NODES, *POOLERS]), JSON))
@settings(max_examples=200, deadline=None)
def test_nonsense_is_unknown(answers):
    found = verdict(answers)
    sound(found)
    assert found.state == UNKNOWN


@given(st.sets(st.sampled_from([*NODES, *POOLERS]), min_size=1))
@settings(deadline=None)
def test_healthy_needs_every_answer(silent):
    found = verdict({name: status for name, status in cluster().items() if name not in silent})
    sound(found)
    assert found.state != HEALTHY
    assert silent <= {reason.node for reason in found.reasons}


@given(st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from([RULE, LATER])), max_size=4), st.randoms())
@settings(max_examples=200, deadline=None)
def test_the_leader_is_one_of_the_highest_rule(said_by, random):
    """Nodes in any mixture of before and after a failover."""
    answers = cluster()
    for name, rule in said_by:
        answers[name] = cluster(rule)[name]
    found = judge(random.sample(NODES, 4), POOLERS, answers)
    sound(found)
    assert found.rule is not None
    assert found.leader in ("", found.rule.leader)
    assert found == verdict(answers) or set(found.reasons) == set(verdict(answers).reasons)


def sound(found: Verdict) -> None:
    assert found.state in (HEALTHY, DEGRADED, FAILING_OVER, NO_LEADER, UNKNOWN)
    assert (found.state == HEALTHY) == (not found.reasons)
    for reason in found.reasons:
        assert reason.what
        assert reason.remedy
    if found.state == HEALTHY:
        assert found.rule is not None
        assert found.rule.members == frozenset(NODES)
        assert found.leader == found.rule.leader
    json.dumps(found.as_dict())


def test_the_answers_are_left_as_they_were():
    answers = cluster()
    before = copy.deepcopy(answers)
    verdict(answers)
    assert answers == before


def test_a_host_that_is_known_to_be_down_is_not_missed_once_it_left_the_rule():
    answers = cluster(SMALLER)
    del answers["pg4"], answers["pool2"]
    assert judge(NODES, POOLERS, answers, away=["pg4", "pool2"]).state == HEALTHY
    assert judge(NODES, POOLERS, answers).state == DEGRADED
    still = cluster()
    del still["pg4"]
    assert "pg4: is known to be down and in rule 1.0" in said(judge(NODES, POOLERS, still, away=["pg4"]))


def test_a_host_that_is_known_to_be_down_and_leads_is_heard():
    assert judge(NODES, POOLERS, cluster(), away=["pg1"]).leader == "pg1"
