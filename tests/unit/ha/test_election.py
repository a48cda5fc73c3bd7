"""Who is to lead, from the answers of fenced nodes (docs/postgres-ha-protocol.md, "Failover")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils.devmentor_ha import rules
from module_utils.devmentor_ha.election import DEMOTED, FOLLOWER, LEADER, Abort, Answer, choose, next_epoch
from module_utils.devmentor_ha.rules import Need, Rule

FIRST = rules.first_rule("pg1", ["pg2", "pg3", "pg4"])
SECOND = rules.next_rule([FIRST], "pg2", 2)  # pg2 leads, pg3 and pg4 follow
TWO = rules.first_rule("pg1", ["pg2", "pg3"])


def answer(node: str, lsn: int, *known: Rule, mode: str = FOLLOWER) -> Answer:
    return Answer(node, mode, known or (FIRST,), lsn, 1)


def test_the_next_epoch_is_above_all() -> None:
    assert next_epoch([]) == 2
    assert next_epoch([1, 4, 3]) == 5


def test_the_most_advanced_follower_leads_the_others() -> None:
    choice = choose([answer("pg2", 10), answer("pg3", 20), answer("pg4", 15)], 2)
    assert choice.candidate == "pg3"
    assert choice.rule == Rule(2, 0, "pg3", frozenset({"pg2", "pg4"}), 1, (1, 0))
    assert choice.need == Need(1, frozenset({"pg2", "pg4"}))
    assert choice.replaced == (FIRST,)


def test_the_newest_rule_counts_before_the_lsn() -> None:
    choice = choose([answer("pg3", 10, FIRST, SECOND), answer("pg4", 99)], 3)
    assert choice.candidate == "pg3"
    assert choice.replaced == (FIRST, SECOND)
    assert choice.rule.followers == {"pg4"}


def test_priority_and_name_break_ties_and_nothing_else() -> None:
    level = [answer("pg4", 10), answer("pg3", 10), answer("pg2", 9)]
    assert choose(level, 2).candidate == "pg3"
    assert choose(level, 2, {"pg4": 1, "pg2": 9}).candidate == "pg4"


def test_a_target_must_be_as_advanced_as_the_best() -> None:
    answers = [answer("pg2", 10), answer("pg3", 10), answer("pg4", 9)]
    assert choose(answers, 2, {"pg2": 5}, target="pg3").candidate == "pg3"
    for target in ("pg4", "pg1"):
        with pytest.raises(Abort, match=f"{target} is not as advanced as"):
            choose(answers, 2, target=target)


def test_a_living_leader_is_reaffirmed_with_its_followers() -> None:
    choice = choose([answer("pg1", 30, mode=LEADER), answer("pg2", 30), answer("pg3", 20)], 2, target="pg1")
    assert choice.rule == Rule(2, 0, "pg1", FIRST.followers, 2, (1, 0))
    assert choice.need == Need(2, FIRST.followers)


def test_a_half_promoted_node_comes_before_the_old_leader() -> None:
    answers = [answer("pg1", 99, mode=LEADER), answer("pg2", 10, FIRST, SECOND, mode=LEADER), answer("pg3", 10)]
    assert choose(answers, 3).candidate == "pg2"
    with pytest.raises(Abort, match="pg1 is not as advanced as pg2"):
        choose(answers, 3, target="pg1")


def test_a_demoted_leader_is_followed_and_not_chosen() -> None:
    stopped = answer("pg1", 30, mode=DEMOTED)
    assert choose([stopped, answer("pg2", 30), answer("pg3", 20)], 2).candidate == "pg2"
    with pytest.raises(Abort, match="pg2 has not everything that pg1 wrote"):
        choose([stopped, answer("pg2", 29), answer("pg3", 20)], 2)


def test_a_demoted_leader_with_a_newer_rule_is_ahead_at_any_lsn() -> None:
    grown = rules.changed_followers(TWO, ["pg2"])
    stopped = answer("pg1", 30, TWO, grown, mode=DEMOTED)
    with pytest.raises(Abort, match="pg2 has not everything that pg1 wrote"):
        choose([stopped, answer("pg2", 40, TWO)], 2)


def test_a_follower_that_an_uncommitted_rule_drops_may_lead() -> None:
    """pg3 alone has what was acknowledged under 1.0; rule 1.1, which drops it, was never committed."""
    shrunk = rules.changed_followers(TWO, ["pg2"])
    choice = choose([answer("pg2", 10, TWO), answer("pg3", 20, TWO, shrunk)], 2)
    assert choice.candidate == "pg3"
    assert choice.rule == Rule(2, 0, "pg3", frozenset({"pg2"}), 1, (1, 0))


def test_a_node_of_no_superseded_rule_does_not_lead() -> None:
    committed = rules.changed_followers(rules.changed_followers(TWO, ["pg2"]), ["pg2", "pg4"])
    known = (Rule(1, 1, "pg1", frozenset({"pg2"}), 1, (1, 0)), committed)
    choice = choose([answer("pg2", 10, *known), answer("pg3", 20, *known), answer("pg4", 5, *known)], 2)
    assert choice.candidate == "pg2"


def test_what_a_node_knows_to_be_committed_need_not_be_covered_further_back() -> None:
    known = Answer("pg3", FOLLOWER, (FIRST, SECOND), 10, 1, committed=SECOND)
    choice = choose([known, answer("pg4", 20)], 3)
    assert choice.candidate == "pg3"
    assert choice.replaced == (SECOND,)
    assert choice.rule.prior == (2, 0)


@pytest.mark.parametrize(
    ("answers", "epoch", "why"),
    [
        ([], 2, "no node answered"),
        ([Answer("pg2", FOLLOWER, (), 1, 1)], 2, "never bootstrapped"),
        ([answer("pg2", 1, SECOND)], 3, "names 1.0 as its prior, which nobody has"),
        ([answer("pg2", 1)], 2, "rule 1.0 needs 2 of .*'pg2'. answered"),
        ([answer("pg1", 1, mode=LEADER), answer("pg2", 1)], 2, "rule 1.0 needs 2 of"),
        ([answer("pg3", 1, FIRST, SECOND), answer("pg2", 1)], 2, "2.0 was written already: epoch 2 is not above it"),
        ([answer("pg1", 1, TWO, mode=DEMOTED), answer("pg4", 1, TWO)], 2, "rule 1.0 needs 2 of"),
    ],
)
def test_what_aborts(answers: list[Answer], epoch: int, why: str) -> None:
    with pytest.raises(Abort, match=why) as raised:
        choose(answers, epoch)
    assert raised.value.reasons


def test_every_rule_that_is_not_covered_is_a_reason() -> None:
    with pytest.raises(Abort) as raised:
        choose([answer("pg3", 1, FIRST, SECOND)], 3)
    assert [reason.split(" needs")[0] for reason in raised.value.reasons] == ["rule 1.0", "rule 2.0"]


def test_force_data_loss_goes_on_with_those_who_answer() -> None:
    present = [answer("pg1", 5, mode=LEADER), answer("pg2", 1)]
    with pytest.raises(Abort, match="needs 2"):
        choose(present, 2)
    choice = choose(present, 2, force_data_loss=True)
    assert (choice.candidate, choice.rule.followers, choice.need.setting) == ("pg1", {"pg2"}, 'ANY 1 ("pg2")')


def test_force_data_loss_leaves_out_nothing_else() -> None:
    alone = [answer("pg2", 1)]
    both = [*alone, answer("pg3", 1)]
    for answers, epoch in (([], 2), (both, 1), ([answer("pg1", 1, mode=DEMOTED)], 2), (alone, 2)):
        with pytest.raises(Abort):
            choose(answers, epoch, force_data_loss=True)


@given(st.permutations(["pg1", "pg2", "pg3", "pg4"]), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_names_decide_nothing_but_ties(names: list[str], lsns: list[int]) -> None:
    leader, *followers = names
    rule = rules.first_rule(leader, followers)
    choice = choose([answer(node, lsn, rule) for node, lsn in zip(followers, lsns, strict=False)], 2)
    best = max(lsns[:3])
    assert choice.candidate == min(node for node, lsn in zip(followers, lsns, strict=False) if lsn == best)
