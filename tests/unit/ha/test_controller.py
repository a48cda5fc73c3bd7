"""What the controller concludes from statuses before it touches anything."""

import copy

import pytest

from devmentor.pgagent.controller import _cannot_be_covered, _healthy_leader, _not_ready
from devmentor_ha.rules import changed_followers, first_rule, next_rule

NODES = ["pg1", "pg2", "pg3", "pg4"]
FIRST = first_rule("pg1", NODES[1:])


def cluster(rule=FIRST):
    """A healthy cluster's statuses, as far as the controller looks."""
    found = {}
    for name in sorted(rule.members):
        leads = name == rule.leader
        found[name] = {
            "node": name,
            "promise": {"epoch": rule.epoch, "controller": "", "at": 0},
            "rule": rule.as_dict(),
            "rules": [rule.as_dict()],
            "committed": rule.as_dict(),
            "leading": rule.as_dict() if leads else None,
            "suspects": None,
            "unwell": "",
            "writes_blocked": False,
            "postgres": {
                "state": "running",
                "age_s": 0.1,
                "streaming": not leads,
                "oldest_transaction_s": 0.0,
                "archive": {"failed_last": False},
                "replication": [
                    {"name": follower, "state": "streaming", "lag_bytes": 0} for follower in sorted(rule.followers)
                ]
                if leads
                else [],
            },
        }
    return found


def changed(change):
    statuses = copy.deepcopy(cluster())
    change(statuses)
    return statuses


def test_a_healthy_leader_is_seen():
    assert "pg1 is healthy" in _healthy_leader(FIRST, cluster())


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("pg1"),
        lambda s: s["pg1"].update(leading=None),
        lambda s: s["pg1"].update(unwell="disk full"),
        lambda s: s["pg1"].update(writes_blocked=True),
        lambda s: s["pg1"]["postgres"].update(state="silent"),
        lambda s: s["pg1"]["postgres"].update(age_s=None),
        lambda s: [s[name].update(suspects={"leader": "pg1"}) for name in ("pg2", "pg3")],
    ],
)
def test_a_leader_of_which_something_is_wrong_or_unknown_is_not_healthy(change):
    assert _healthy_leader(FIRST, changed(change)) == ""


def test_one_suspicion_is_no_quorum():
    assert _healthy_leader(FIRST, changed(lambda s: s["pg2"].update(suspects={"leader": "pg1"})))


def test_a_switchover_is_ready_where_all_is_well():
    assert _not_ready(FIRST, cluster(), "pg2") == []


@pytest.mark.parametrize(
    ("change", "target", "said"),
    [
        (lambda s: None, "pg1", "leads already"),
        (lambda s: None, "pg9", "no follower"),
        (lambda s: s.pop("pg1"), "pg2", "does not answer as such"),
        (lambda s: s["pg3"].update(suspects={"leader": "pg1"}), "pg2", "pg3 suspect"),
        (lambda s: s["pg4"]["promise"].update(epoch=2), "pg2", "promised a higher epoch"),
        (lambda s: s["pg1"]["postgres"]["replication"].pop(0), "pg2", "does not stream"),
        (lambda s: s["pg1"]["postgres"]["replication"][0].update(lag_bytes=1 << 30), "pg2", "lags by"),
        (lambda s: s["pg1"]["postgres"].update(oldest_transaction_s=60.0), "pg2", "transaction on pg1"),
        (lambda s: s["pg1"]["postgres"]["archive"].update(failed_last=True), "pg2", "archiving fails"),
        (lambda s: (s.pop("pg3"), s.pop("pg4")), "pg2", "only pg2 of the followers"),
    ],
)
def test_each_obstacle_to_a_switchover_is_named(change, target, said):
    assert any(said in reason for reason in _not_ready(FIRST, changed(change), target))


def test_two_followers_cover_the_first_rule_and_one_does_not():
    statuses = cluster()
    assert _cannot_be_covered(statuses, ["pg2", "pg3"]) == []
    assert _cannot_be_covered(statuses, ["pg2"])


def test_a_stopped_server_covers_nothing():
    statuses = changed(lambda s: s["pg3"]["postgres"].update(state="stopped"))
    assert _cannot_be_covered(statuses, ["pg2", "pg3"])


def test_what_is_known_to_be_committed_spares_the_rule_before_it():
    second = next_rule([FIRST], "pg2", 2)
    grown = changed_followers(second, ["pg1", "pg3", "pg4"])
    statuses = cluster(grown)
    for status in statuses.values():
        status["rules"] = [second.as_dict(), grown.as_dict()]
    assert _cannot_be_covered(statuses, ["pg1", "pg4"]) == []
    for status in statuses.values():
        status["committed"] = None
    assert _cannot_be_covered(statuses, ["pg1", "pg4"]), "rule 2.0 needs pg3 and pg4"
