"""Which WAL is a part of which: what decides between following, rewinding and copying."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils.devmentor_ha.lineage import Lineage

LEADER = Lineage.build([(1, 100), (2, 200)], 3, {"2": 4, "3": 7})


def test_it_survives_the_wire():
    assert Lineage.from_list(LEADER.as_list()) == LEADER


def test_a_node_at_or_before_the_fork_is_a_part():
    behind = Lineage.build([], 1, {})
    assert behind.differs_from(LEADER, 100) == ""
    assert behind.differs_from(LEADER, 40) == ""


def test_a_node_beyond_the_fork_is_not():
    assert "by 1 bytes" in Lineage.build([], 1, {}).differs_from(LEADER, 101)


def test_the_current_timeline_has_no_end():
    same = Lineage.build([(1, 100), (2, 200)], 3, {"2": 4, "3": 7})
    assert same.differs_from(LEADER, 10**9) == ""


def test_one_number_made_by_two_epochs_is_seen():
    twin = Lineage.build([(1, 100), (2, 200)], 3, {"2": 4, "3": 6})
    assert "epoch 6" in twin.differs_from(LEADER, 200)
    assert twin.same_number_other_epoch(LEADER)


def test_an_unknown_epoch_is_never_taken_for_the_same():
    unknown = Lineage.build([(1, 100)], 2, {})
    assert unknown.differs_from(LEADER, 150) != ""
    assert unknown.same_number_other_epoch(LEADER)


def test_another_fork_point_is_another_history():
    assert "another place" in Lineage.build([(1, 90), (2, 200)], 3, {"2": 4, "3": 7}).differs_from(LEADER, 100)


def test_a_node_ahead_of_the_leader_is_no_part():
    ahead = Lineage.build([(1, 100), (2, 200), (3, 300)], 4, {"2": 4, "3": 7, "4": 9})
    assert ahead.differs_from(LEADER, 300) != ""


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(0, 400))
def test_a_lineage_is_a_part_of_itself(gaps: list[int], lsn: int):
    ends = [(number + 1, sum(gaps[: number + 1])) for number in range(len(gaps))]
    epochs = {str(number + 2): number + 5 for number in range(len(gaps))}
    lineage = Lineage.build(ends, len(gaps) + 1, epochs)
    assert lineage.differs_from(lineage, lsn) == ""
    assert not lineage.same_number_other_epoch(lineage)


def test_a_number_without_end_is_no_lineage():
    told = LEADER.as_list()
    told[-1]["epoch"] = float("inf")
    with pytest.raises(ValueError, match="in a lineage"):
        Lineage.from_list(told)
