"""A leader leaves out pretended followers and takes them in again (leading.py, "Once it leads")."""

import asyncio

import pytest

from devmentor.pgagent.peers import CallFailed
from devmentor.pgagent.sql import Silent
from devmentor_ha.rules import changed_followers, first_rule
from tests.unit.services.pgagent.pretended import FIRST, LSN, NODES, raising

TWO = changed_followers(FIRST, ["pg2", "pg3"])
ONE = first_rule("pg1", ["pg2"])
REMOVED = changed_followers(FIRST, ["pg2", "pg3"], ["pg4"])


def settings_of(journal):
    names = "synchronous_standby_names = "
    return [line.removeprefix(names) for line in journal if line.startswith(names)]


def stop(around, *names):
    for name in names:
        around.server.standbys[name].state = "catchup"


async def test_a_pretended_follower_that_is_away_for_ten_seconds_leaves_and_not_before(surround):
    around = surround("pg1", shrink_after_s=10)
    await around.live(3)
    stop(around, "pg4")
    await around.live(9)
    assert around.leading.rule == FIRST
    await around.live(3)
    assert around.leading.rule == TWO
    assert around.neighbours.body("retarget") == {"rule": TWO.as_dict(), "replicas": ["pg2", "pg3"]}


async def test_a_pretended_follower_that_comes_back_in_time_stays(surround):
    around = surround("pg1", shrink_after_s=10)
    await around.live(3)
    for _ in range(4):
        stop(around, "pg4")
        await around.live(8)
        around.server.standbys["pg4"].state = "streaming"
        await around.live(1)
    assert around.leading.rule == FIRST


async def test_one_that_streams_joins_and_one_that_lags_does_not(surround):
    around = surround("pg1", rule=TWO, grow_after_s=2)
    around.server.standbys["pg4"].lag_bytes = 17 << 20
    await around.live(10)
    assert around.leading.rule == TWO
    around.server.standbys["pg4"].lag_bytes = 0
    await around.live(4)
    assert around.leading.rule.followers == {"pg2", "pg3", "pg4"}
    assert around.leading.rule.name == "1.2"


async def test_one_that_the_operator_removed_stays_out_until_it_is_added(surround):
    around = surround("pg1")
    await around.live(3)
    await around.ask("members", {"remove": "pg4"})
    await around.live(20)
    assert around.leading.rule == REMOVED
    assert around.server.rules[-1] == REMOVED
    await around.ask("members", {"add": "pg4"})
    assert around.leading.rule.followers == {"pg2", "pg3", "pg4"}
    assert not around.leading.rule.removed


async def test_one_that_has_streamed_only_just_does_not_join_yet(surround):
    around = surround("pg1", rule=TWO, grow_after_s=5)
    await around.live(1)
    assert around.leading.rule == TWO
    await around.live(3.5)
    assert around.leading.rule == TWO
    await around.live(3)
    assert around.leading.rule.name == "1.2"


async def test_pretended_followers_join_and_leave_one_at_a_time(surround):
    around = surround("pg1", rule=ONE)
    await around.live(15)
    rows = [line for line in around.journal if line.startswith("row")]
    assert rows == ["row 1.1", "row 1.2"]
    assert [sorted(rule.followers) for rule in around.server.rules] == [
        ["pg2"],
        ["pg2", "pg3"],
        ["pg2", "pg3", "pg4"],
    ]
    stop(around, "pg4")
    await around.live(12)
    assert around.leading.rule.followers == {"pg2", "pg3"}
    stop(around, "pg3")
    await around.live(12)
    assert around.leading.rule.followers == {"pg2"}


async def test_the_last_follower_stays(surround):
    around = surround("pg1", rule=ONE, grow_after_s=1000)
    await around.live(3)
    stop(around, *NODES[1:])
    await around.live(60)
    assert around.leading.rule == ONE
    assert around.server.rules == [ONE]


async def test_nothing_changes_while_the_quorum_does_not_stream(surround):
    """Two of three are away at once: the leader waits, it does not go on with one copy."""
    around = surround("pg1", shrink_after_s=10)
    await around.live(3)
    around.journal.clear()
    stop(around, "pg3", "pg4")
    await around.live(120)
    assert around.journal == []
    assert (await around.ask("status"))["writes_blocked"]
    around.server.standbys["pg3"].state = "streaming"
    await around.live(2)
    assert around.leading.rule == TWO, "the other one has been away for long enough"
    assert not (await around.ask("status"))["writes_blocked"]


async def test_a_healthy_leader_never_says_that_its_writes_are_blocked(surround):
    around = surround("pg1", rule=TWO)
    for _ in range(100):
        await around.live(0.1)
        if around.leading.rule is not None and around.leading.committing is None:
            assert not around.leading.blocked
    assert around.leading.rule.name == "1.2"


# Under both quorums


async def changing(around, followers, flushed):
    """A change whose row the pretended followers `flushed` alone have; its task."""
    await around.live(3)
    around.journal.clear()
    for name, standby in around.server.standbys.items():
        standby.flushed = None if name in flushed else LSN
    task = asyncio.create_task(around.leading.change(followers))
    await around.live(3)
    return task


@pytest.mark.parametrize(
    ("before", "after", "too_few", "enough"),
    [
        (FIRST, {"pg2", "pg3"}, {"pg3"}, {"pg3", "pg4"}),  # 2 of the old three, 1 of the new two
        (TWO, {"pg2", "pg3", "pg4"}, {"pg4"}, {"pg4", "pg2"}),  # 1 of the old two, 2 of the new three
        (TWO, {"pg2"}, {"pg3"}, {"pg2"}),  # 1 of the old two, and the one that stays
        (ONE, {"pg2", "pg3"}, {"pg3"}, {"pg2"}),  # the old one alone knows of the leader until then
    ],
)
async def test_a_change_needs_pretended_followers_of_both_rules(surround, before, after, too_few, enough):
    around = surround("pg1", rule=before, grow_after_s=1000, shrink_after_s=1000)
    task = await changing(around, after, too_few)
    assert not task.done()
    assert around.leading.rule == before
    assert around.neighbours.calls("retarget") == ["pool1", "pool2"], "those of its own start"
    assert around.leading.committing.followers == after
    for name in enough:
        around.server.standbys[name].flushed = None
    await around.live(1)
    assert (await task).followers == after
    assert around.leading.rule.followers == after
    assert around.state.committed.followers == after


async def test_while_a_change_is_under_way_clients_wait_for_both_quorums_too(surround):
    around = surround("pg1", rule=ONE, grow_after_s=1000)
    task = await changing(around, {"pg2", "pg3"}, set())
    assert settings_of(around.journal) == ['ANY 1 ("pg2")'] or not settings_of(around.journal)
    assert around.server.applied["synchronous_standby_names"] == 'ANY 1 ("pg2")'
    around.server.standbys["pg2"].flushed = None
    await task
    assert around.server.applied["synchronous_standby_names"] == 'ANY 1 ("pg2", "pg3")'
    order = around.journal
    assert order.index("row 1.1") < order.index('synchronous_standby_names = ANY 1 ("pg2", "pg3")')


async def test_a_change_that_broke_off_is_committed_before_any_other(surround):
    """Its row may be in the WAL already: a second one of that number would be another rule than the row says."""
    around = surround("pg1", shrink_after_s=10)
    await around.live(3)
    stop(around, "pg4")
    around.server.before["pg_stat_replication WHERE flush_lsn"] = raising(Silent("PostgreSQL of this host: no answer"))
    await around.live(11.5)
    assert around.server.rules == [FIRST, TWO]
    around.server.standbys["pg4"].state = "streaming"
    stop(around, "pg3")
    await around.live(5)
    around.server.before.clear()
    await around.live(30)
    rules = {rule.key: rule for rule in around.server.rules}
    assert around.leading.rule == rules[around.leading.rule.key], "what it leads by is what its row says"
    assert around.leading.rule.followers == {"pg2", "pg4"}
    assert around.leading.committing is None


async def test_a_change_that_broke_off_goes_on_though_nothing_else_is_to_be_changed(surround):
    around = surround("pg1", shrink_after_s=10, grow_after_s=1000)
    await around.live(3)
    stop(around, "pg4")
    around.server.before["pg_stat_replication WHERE flush_lsn"] = raising(Silent("PostgreSQL of this host: no answer"))
    await around.live(11.5)
    around.server.standbys["pg4"].state = "streaming"
    await around.live(5)
    with pytest.raises(CallFailed, match=r"rule 1\.1 is being committed"):
        await around.ask("members", {"remove": "pg3"})
    around.server.before.clear()
    await around.live(5)
    assert around.leading.rule == TWO
    assert not (await around.ask("status"))["writes_blocked"]


async def test_two_changes_at_once_are_not_made(surround):
    around = surround("pg1", shrink_after_s=1000)
    task = await changing(around, {"pg2", "pg3"}, {"pg2"})
    with pytest.raises(CallFailed) as failure:
        await asyncio.wait_for(around.ask("members", {"remove": "pg2"}), 30)
    assert failure.value.status == 409
    around.server.standbys["pg3"].flushed = None
    await task
    assert around.leading.rule == TWO
    assert around.server.rules == [FIRST, TWO]
