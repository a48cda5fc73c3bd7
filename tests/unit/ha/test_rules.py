"""Rules, quorums, covers: the table of docs/postgres-ha-protocol.md, and the arithmetic that the protocol rests on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils.devmentor_ha import rules
from module_utils.devmentor_ha.rules import Need, Rule, RuleError

NODES = ("pg1", "pg2", "pg3", "pg4", "pg5")


def subsets(names: frozenset[str], size: int | None = None) -> Iterator[frozenset[str]]:
    sizes = range(len(names) + 1) if size is None else [size]
    return (frozenset(chosen) for n in sizes for chosen in itertools.combinations(sorted(names), n))


@st.composite
def some_rules(draw: st.DrawFn) -> Rule:
    leader = draw(st.sampled_from(NODES))
    followers = draw(st.frozensets(st.sampled_from([n for n in NODES if n != leader]), min_size=1))
    epoch, sub = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    return Rule(epoch, sub, leader, followers, rules.write_quorum(len(followers)), (epoch, 0))


needs = st.builds(
    lambda among, count: Need(min(count, len(among)), among),
    st.frozensets(st.sampled_from(NODES), min_size=1),
    st.integers(0, 5),
)


@pytest.mark.parametrize(("followers", "w", "r"), [(3, 2, 2), (2, 1, 2), (1, 1, 1)])
def test_the_documents_table(followers: int, w: int, r: int) -> None:
    assert (rules.write_quorum(followers), rules.fence_quorum(followers)) == (w, r)


@pytest.mark.parametrize("count", range(1, 9))
def test_a_fence_meets_every_acknowledgement_and_every_other_fence(count: int) -> None:
    w, r = rules.write_quorum(count), rules.fence_quorum(count)
    followers = range(count)
    for fenced in itertools.combinations(followers, r):
        assert all(set(fenced) & set(acked) for acked in itertools.combinations(followers, w))
        assert all(set(fenced) & set(other) for other in itertools.combinations(followers, r))
        assert count - r < w, "the followers that are not fenced could acknowledge"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ((0, 0, "pg1", {"pg2"}, 1, (0, 0)), "first is 1.0"),
        ((1, -1, "pg1", {"pg2"}, 1, (1, -1)), "first is 1.0"),
        ((1, 0, "pg1", set(), 0, (1, 0)), "at least one follower"),
        ((1, 0, "pg1", {"pg1", "pg2"}, 1, (1, 0)), "other than itself"),
        ((1, 0, "pg1", {"pg2", "pg3"}, 2, (1, 0)), "w is 2, not 1"),
        ((1, 0, "pg1", {"pg2"}, 1, (2, 0)), "prior .* is later"),
    ],
)
def test_what_is_no_rule(rule: tuple, why: str) -> None:
    epoch, sub, leader, followers, w, prior = rule
    with pytest.raises(RuleError, match=why):
        Rule(epoch, sub, leader, frozenset(followers), w, prior)


@given(some_rules())
def test_a_rule_comes_back_from_its_row(rule: Rule) -> None:
    assert Rule.from_dict(rule.as_dict()) == rule


@pytest.mark.parametrize(
    "change", [{"epoch": None}, {"followers": 3}, {"w": "x"}, {"w": float("inf")}, {"prior_sub": ...}]
)
def test_a_row_that_is_no_rule(change: dict) -> None:
    row = rules.first_rule("pg1", ["pg2"]).as_dict() | change
    with pytest.raises(RuleError, match="is no rule"):
        Rule.from_dict({key: value for key, value in row.items() if value is not ...})


def test_a_setting_names_its_standbys() -> None:
    assert Need(2, frozenset({"pg3", "pg2"})).setting == 'ANY 2 ("pg2", "pg3")'
    assert Need(1, frozenset({'a"b'})).setting == 'ANY 1 ("a""b")'


@given(st.lists(needs, min_size=1, max_size=4).filter(lambda some: any(need.count for need in some)))
def test_combined_satisfies_every_need_and_waits_for_the_fewest(some: list[Need]) -> None:
    one = rules.combined(some)
    names = frozenset[str]().union(*(need.among for need in some))
    assert 1 <= one.count <= len(one.among)

    def enough(need: Need) -> bool:
        return all(all(n.met_by(acked) for n in some) for acked in subsets(names) if need.met_by(acked))

    assert enough(one)
    fewer = [Need(n, among) for among in subsets(names) for n in range(1, min(one.count, len(among) + 1))]
    assert not any(enough(need) for need in fewer)


def test_combined_needs_somebody() -> None:
    for some in ([], [Need(0, frozenset({"pg1"}))]):
        with pytest.raises(RuleError, match="must wait for somebody"):
            rules.combined(some)


@given(some_rules(), st.sampled_from(NODES))
def test_who_covers_the_old_rule_meets_the_row_of_the_new_one(old: Rule, leader: str) -> None:
    need = rules.handover_need(old, leader)
    for acked in subsets(old.followers):
        if need.met_by(acked - {leader}):
            holders = acked | {leader}
            assert all(holders & fenced for fenced in subsets(old.members) if rules.covered(old, fenced))


def test_a_leader_from_outside_needs_both_followers() -> None:
    """One would do against R of them, but the old leader with the other one would not see the row."""
    two = rules.first_rule("pg1", ["pg2", "pg3"])
    assert rules.handover_need(two, "pg4") == Need(2, two.followers)
    assert rules.handover_need(two, "pg2") == Need(1, frozenset({"pg3"}))
    assert rules.handover_need(two, "pg1") == Need(1, two.followers)


@given(some_rules())
def test_a_leaders_own_row_waits_for_the_old_quorum_too(rule: Rule) -> None:
    need = rules.handover_need(rule, rule.leader)
    assert need.among == rule.followers
    assert need.count >= rule.w


@given(some_rules())
def test_a_cover_leaves_no_acknowledgement_and_no_second_cover(rule: Rule) -> None:
    """Of disjoint sets of nodes, as promises to two controllers of one epoch are, one at most covers a rule."""
    for fenced in subsets(rule.members):
        if not rules.covered(rule, fenced):
            continue
        free = rule.followers - fenced
        assert rule.leader in fenced or len(free) < rule.w
        assert all(fenced & (acked | {rule.leader}) for acked in subsets(rule.followers, rule.w))
        assert not rules.covered(rule, rule.members - fenced)


def test_what_covers_the_full_cluster_and_the_smaller_ones() -> None:
    three = rules.first_rule("pg1", ["pg2", "pg3", "pg4"])
    assert rules.covered(three, ["pg3", "pg4"])
    assert not rules.covered(three, ["pg1", "pg4"])
    two = rules.first_rule("pg1", ["pg2", "pg3"])
    assert rules.covered(two, ["pg2", "pg3"])
    assert rules.covered(two, ["pg1", "pg3"])
    assert not rules.covered(two, ["pg3"])
    assert not rules.covered(two, ["pg1"])
    one = rules.first_rule("pg1", ["pg2"])
    assert rules.covered(one, ["pg2"])
    assert not rules.covered(one, ["pg1"])


def test_the_reason_for_no_cover_names_rule_and_nodes() -> None:
    rule = rules.first_rule("pg1", ["pg2", "pg3"])
    assert rules.uncovered([rule], ["pg3"]) == [
        "rule 1.0 needs 2 of ['pg2', 'pg3'] fenced, or 1 and its leader pg1; ['pg3'] answered"
    ]
    assert rules.uncovered([rule], ["pg2", "pg3"]) == []


def test_superseded_goes_back_to_the_last_committed_rule() -> None:
    first = rules.first_rule("pg1", ["pg2", "pg3"])
    tried = Rule(2, 0, "pg2", frozenset({"pg3"}), 1, (1, 0))
    second = Rule(3, 0, "pg3", frozenset({"pg2"}), 1, (1, 0))
    grown = rules.changed_followers(second, ["pg1", "pg2"])
    assert rules.superseded([second, first, tried]) == [first, tried, second]
    assert grown.prior == (3, 0)
    assert rules.superseded([grown, second, first, tried, first]) == [second, grown]


def test_superseded_takes_the_word_of_a_leader() -> None:
    first = rules.first_rule("pg1", ["pg2", "pg3"])
    second = Rule(2, 0, "pg2", frozenset({"pg3"}), 1, (1, 0))
    third = Rule(3, 0, "pg3", frozenset({"pg2"}), 1, (1, 0))
    assert rules.superseded([first, second, third], second) == [second, third]
    assert rules.superseded([first], second) == [second]
    assert rules.superseded([first, second, third], first) == [first, second, third]


def test_superseded_counts_both_rows_of_one_epoch() -> None:
    """They come from attempts with force_data_loss; the earlier of their priors counts."""
    first = rules.first_rule("pg1", ["pg2", "pg3"])
    shrunk = rules.changed_followers(first, ["pg2"])
    one = Rule(2, 0, "pg2", frozenset({"pg3"}), 1, (1, 1))
    other = Rule(2, 0, "pg3", frozenset({"pg2"}), 1, (1, 0))
    assert rules.superseded([other, one, shrunk, first]) == [first, shrunk, one, other]


def test_superseded_without_rules_or_without_a_prior() -> None:
    with pytest.raises(RuleError, match="never bootstrapped"):
        rules.superseded([])
    with pytest.raises(RuleError, match=r"names 1\.0 as its prior, which nobody has"):
        rules.superseded([Rule(2, 0, "pg2", frozenset({"pg3"}), 1, (1, 0))])


def test_the_next_rule() -> None:
    three = rules.first_rule("pg1", ["pg2", "pg3", "pg4"])
    assert rules.next_rule([three], "pg3", 2) == Rule(2, 0, "pg3", frozenset({"pg2", "pg4"}), 1, (1, 0))
    assert rules.next_rule([three], "pg1", 2) == Rule(2, 0, "pg1", three.followers, 2, (1, 0))
    one = rules.first_rule("pg1", ["pg2"])
    assert rules.next_rule([one], "pg2", 2) == Rule(2, 0, "pg2", frozenset({"pg1"}), 1, (1, 0))
    tried = rules.next_rule([three], "pg2", 2)
    assert rules.next_rule([three, tried], "pg4", 3) == Rule(3, 0, "pg4", frozenset({"pg3"}), 1, (1, 0))


def test_a_removed_node_stays_removed_whoever_leads() -> None:
    three = rules.first_rule("pg1", ["pg2", "pg3", "pg4"])
    removed = rules.changed_followers(three, ["pg2", "pg3"], ["pg4"])
    assert removed == Rule(1, 1, "pg1", frozenset({"pg2", "pg3"}), 1, (1, 0), frozenset({"pg4"}))
    assert rules.next_rule([removed], "pg2", 2).removed == {"pg4"}
    assert rules.changed_followers(removed, ["pg2"]).removed == {"pg4"}  # a loss after it
    assert Rule.from_dict(removed.as_dict()) == removed
    back = rules.changed_followers(removed, ["pg2", "pg3", "pg4"], [])
    assert (back.followers, back.removed) == (three.followers, frozenset())
    # Who is let lead all the same, where data was given up, is in it again.
    assert rules.next_rule([removed], "pg4", 2).removed == frozenset()


def test_nobody_is_in_a_rule_and_removed_from_it() -> None:
    with pytest.raises(RuleError, match="removed"):
        Rule(1, 1, "pg1", frozenset({"pg2"}), 1, (1, 0), frozenset({"pg2"}))


def test_a_node_that_does_not_follow_can_be_removed() -> None:
    two = rules.first_rule("pg1", ["pg2", "pg3"])
    assert rules.changed_followers(two, two.followers, ["pg4"]).removed == {"pg4"}


def test_changed_followers_change_something() -> None:
    rule = rules.first_rule("pg1", ["pg2", "pg3"])
    assert rules.changed_followers(rule, ["pg3"]) == Rule(1, 1, "pg1", frozenset({"pg3"}), 1, (1, 0))
    with pytest.raises(RuleError, match="has these followers already"):
        rules.changed_followers(rule, ["pg3", "pg2"])
    with pytest.raises(RuleError, match="at least one follower"):
        rules.changed_followers(rule, [])


@given(some_rules(), st.data())
def test_a_transition_commits_the_rule_on_both_sides(old: Rule, data: st.DataObject) -> None:
    leader = data.draw(st.sampled_from(sorted(old.members)))
    new = rules.next_rule([old], leader, old.epoch + 1)
    need = rules.transition([old], new)
    for acked in subsets(need.among):
        if need.met_by(acked):
            assert rules.final_need(new).met_by(acked)
            assert all((acked | {leader}) & fenced for fenced in subsets(old.members) if rules.covered(old, fenced))
