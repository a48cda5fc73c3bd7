"""A former leader must not come up as a second one."""

import dataclasses

import pytest

from module_utils.devmentor_ha.rules import NOBODY, Need, first_rule, next_rule
from module_utils.devmentor_ha.start_guard import ALLOW, CLEAR, REFUSE, Local, judge

FIRST = first_rule("pg1", ["pg2", "pg3", "pg4"])
LATER = next_rule([FIRST], "pg2", 2)
LEADER = Local("pg1", False, 1, 1, 'ANY 2 ("pg2", "pg3", "pg4")', (FIRST,))


def status(promised=1, rule=FIRST):
    return {"promise": {"epoch": promised}, "rule": rule.as_dict() if rule else None, "committed": None}


def test_the_leader_starts_where_a_quorum_knows_of_nothing_later():
    assert judge(LEADER, {"pg2": status(), "pg3": status()})[0] == ALLOW


def test_one_answer_is_not_enough_and_the_silent_are_named():
    verdict, why = judge(LEADER, {"pg2": status()}, ["pg3: no answer"])
    assert verdict == REFUSE
    assert "pg3: no answer" in why


def test_a_node_outside_the_rule_is_no_witness():
    assert judge(LEADER, {"pg2": status(), "pg9": status()})[0] == REFUSE


def test_a_higher_promise_anywhere_refuses():
    verdict, why = judge(LEADER, {"pg2": status(), "pg3": status(), "pg4": status(promised=2)})
    assert verdict == REFUSE
    assert "pg4 promised 2" in why


def test_its_own_higher_promise_refuses():
    assert judge(dataclasses.replace(LEADER, promised=2), {"pg2": status(), "pg3": status()})[0] == REFUSE


def test_a_superseded_leader_is_refused_whatever_the_others_say():
    assert judge(LEADER, {"pg2": status(2, LATER), "pg3": status(), "pg4": status()})[0] == REFUSE


def test_a_leader_that_acknowledges_nothing_may_start():
    fenced = dataclasses.replace(LEADER, synchronous=Need(1, frozenset({NOBODY})).setting)
    assert judge(fenced, {})[0] == ALLOW


def test_a_new_cluster_starts():
    assert judge(dataclasses.replace(LEADER, promised=0, rules=()), {"pg2": status(0, None)})[0] == ALLOW


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"promise": {}},
        {"promise": {"epoch": "x"}},
        {"promise": {"epoch": float("inf")}},
        {"rule": {"epoch": 1}},
    ],
)
def test_what_cannot_be_read_is_no_answer(answer):
    assert judge(LEADER, {"pg2": status(), "pg3": answer})[0] == REFUSE


@pytest.mark.parametrize(("promised", "following", "verdict"), [(1, 1, ALLOW), (0, 0, ALLOW), (3, 2, CLEAR)])
def test_a_follower_that_promised_more_than_it_follows_starts_without_a_connection(promised, following, verdict):
    assert judge(Local("pg2", True, promised, following, "", ()), {})[0] == verdict
