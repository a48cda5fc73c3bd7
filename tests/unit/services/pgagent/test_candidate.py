"""The candidate among pretended followers: promote, repoint, commit the row, lead the poolers (leading.py)."""

import asyncio

import pytest

from devmentor.pgagent.peers import CallFailed
from devmentor.pgagent.sql import Silent
from devmentor_ha.rules import Need, next_rule
from tests.unit.services.pgagent.pretended import CLOCK, FENCED, FIRST, LSN, Standby, promised, raising, refused

SECOND = next_rule([FIRST], "pg2", 2)  # pg2 leads pg3 and pg4
BOTH = Need(2, frozenset({"pg3", "pg4"}))
FINAL = 'synchronous_standby_names = ANY 1 ("pg3", "pg4")'


async def told_to_lead(around, epoch=2, controller="pg3/c", need=BOTH, rule=SECOND):
    """Fenced, and chosen."""
    await around.ask("fence", {"epoch": epoch, "controller": controller})
    around.journal.clear()
    return await around.ask("lead", lead_body(epoch, controller, need, rule))


def lead_body(epoch=2, controller="pg3/c", need=BOTH, rule=SECOND):
    return {
        "epoch": epoch,
        "controller": controller,
        "rule": rule.as_dict(),
        "need": {"count": need.count, "among": sorted(need.among)},
        "fenced": ["pg2", "pg3", "pg4"],
    }


def stay_behind(around, *names):
    """They stream, but do not flush this node's WAL."""
    for name in names:
        around.neighbours.answers[name, "repoint"] = lambda _body, name=name: around.server.standbys.update(
            {name: Standby(flushed=LSN)}
        )


async def test_nobody_is_named_until_the_pretended_followers_have_flushed_the_row(surround):
    around = surround("pg2")
    await around.look()
    stay_behind(around, "pg3", "pg4")
    await told_to_lead(around)
    await around.live(5)
    order = around.journal
    assert order.index(f"synchronous_standby_names = {FENCED}") < order.index("promote") < order.index("row 2.0")
    assert around.server.applied["synchronous_standby_names"] == FENCED
    assert FINAL not in order
    assert around.neighbours.calls("retarget") == []
    assert around.leading.rule is None
    assert around.state.committed == FIRST
    assert around.state.archive_held

    around.server.standbys["pg3"].flushed = None  # one of the two that the row needs
    await around.live(5)
    assert around.server.applied["synchronous_standby_names"] == FENCED
    assert around.leading.rule is None

    around.server.standbys["pg4"].flushed = None
    await around.live(2)
    assert around.leading.rule == SECOND
    assert around.state.committed == SECOND
    assert not around.state.archive_held
    assert order.index("row 2.0") < order.index(FINAL) < order.index("pool1 retarget")
    assert around.neighbours.body("retarget") == {"rule": SECOND.as_dict(), "replicas": ["pg3", "pg4"]}


async def test_the_status_says_that_a_row_waits_and_since_when(surround):
    around = surround("pg2")
    await around.look()
    stay_behind(around, "pg3", "pg4")
    began = CLOCK.time()
    await told_to_lead(around)
    await around.live(5)
    status = await around.ask("status")
    assert status["committing"] == SECOND.as_dict()
    assert began <= status["waits_since"] <= began + 1
    assert status["leading"] is None
    assert status["writes_blocked"]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_candidate_is_known_as_one_from_the_beginning_and_no_longer_where_it_is_not_promoted(surround, ends):
    """Or a promotion that takes long would be met by the next election."""
    around = surround("pg2")
    await around.look()

    async def slow(limit_s):
        await asyncio.sleep(8)
        if not ends:
            raise Silent("PostgreSQL of this host was not promoted in 8 s")
        around.server._promote("", None)

    around.agent.postgres.promote = slow
    await told_to_lead(around)
    await around.live(6)
    assert (await around.ask("status"))["committing"] == SECOND.as_dict()
    await around.live(6)
    status = await around.ask("status")
    assert (status["committing"], status["leading"]) == (None, SECOND.as_dict() if ends else None)


async def test_after_the_commit_come_checkpoint_a_new_segment_and_what_the_fence_had_set(surround):
    around = surround("pg2", restore_command="fetch %f %p")
    await around.look()
    await told_to_lead(around)
    await around.live(5)
    order = around.journal
    assert order.index("pool2 retarget") < order.index("checkpoint") < order.index("switch segment")
    assert around.server.applied["restore_command"] == "fetch %f %p"
    assert "wal_retrieve_retry_interval" not in around.server.applied


async def test_a_checkpoint_that_was_broken_off_is_made_all_the_same(surround):
    """As by a restart of the agent: without it nobody could be rewound until PostgreSQL's own, minutes later."""
    around = surround("pg2", restore_command="fetch %f %p")
    await around.look()
    await told_to_lead(around)
    around.leading._finish = lambda: None
    await around.live(3)
    assert "checkpoint" not in around.journal
    del around.leading._finish
    await around.live(2)
    assert around.journal.index("checkpoint") < around.journal.index("switch segment")
    assert "wal_retrieve_retry_interval" not in around.server.applied
    around.journal.clear()
    await around.live(20)
    assert around.journal == [], "once is enough"
    around.server.write_conf({**around.server.conf, "restore_command": ""})
    around.server.take_up()
    await around.live(2)
    assert around.server.applied["restore_command"] == "fetch %f %p"


async def test_a_checkpoint_that_fails_is_tried_again_each_ten_seconds_and_no_segment_is_switched(
    surround, monkeypatch
):
    around = surround("pg2")
    await around.look()
    tried = []

    async def fails(limit_s=300.0):
        tried.append(CLOCK.now)
        raise Silent("PostgreSQL of this host: could not write")

    monkeypatch.setattr(around.agent.postgres, "checkpoint", fails)
    await told_to_lead(around)
    await around.live(35)
    assert 3 <= len(tried) <= 5
    assert "switch segment" not in around.journal
    assert "wal_retrieve_retry_interval" not in around.server.applied


async def test_without_its_first_checkpoint_a_leader_makes_one_and_no_second_beside_it(surround, monkeypatch):
    """As after a crash between the promotion and it; nothing that the fence had set is left."""
    around = surround("pg2")
    server = around.server
    server.in_recovery, server.timeline, server.rules = False, 2, [FIRST, SECOND]
    server.write_conf({"synchronous_standby_names": FINAL.partition(" = ")[2]})
    server.take_up()
    around.state.know_committed(SECOND)
    around.state.set_promise(2, "pg3/c")
    checkpoint, begun = around.agent.postgres.checkpoint, []

    async def slow(limit_s=300.0):
        begun.append(CLOCK.now)
        await asyncio.sleep(20)
        await checkpoint(limit_s)

    monkeypatch.setattr(around.agent.postgres, "checkpoint", slow)
    await around.live(40)
    assert around.leading.rule == SECOND
    assert len(begun) == 1
    assert server.checkpoint_timeline == 2


async def test_a_look_from_before_the_promotion_does_not_undo_what_a_later_one_saw(surround, monkeypatch):
    around = surround("pg2")
    await around.look()
    observe, before = around.agent.postgres.observe, await around.agent.postgres.observe()
    slow = asyncio.Event()

    async def late():
        await slow.wait()
        return before

    monkeypatch.setattr(around.agent.postgres, "observe", late)
    first = asyncio.create_task(around.agent.observe())
    await asyncio.sleep(0.1)
    monkeypatch.setattr(around.agent.postgres, "observe", observe)
    around.server.in_recovery = False
    await around.agent.observe()
    slow.set()
    await first
    assert around.agent.in_recovery is False


async def test_nor_what_a_later_one_did_not_see(surround, monkeypatch):
    around = surround("pg2")
    await around.look()
    postgres, before = around.agent.postgres, await around.agent.postgres.observe()
    slow = asyncio.Event()

    async def late():
        await slow.wait()
        return before

    monkeypatch.setattr(postgres, "observe", late)
    first = asyncio.create_task(around.agent.observe())
    await asyncio.sleep(0.1)
    monkeypatch.setattr(postgres, "observe", raising(Silent("no answer in 1 s")))
    await around.agent.observe()
    slow.set()
    await first
    assert not around.agent.running


async def test_the_fenced_pretended_followers_are_repointed_before_the_row_can_be_committed(surround):
    around = surround("pg2")
    await around.look()
    await told_to_lead(around)
    await around.live(2)
    assert sorted(around.neighbours.calls("repoint")) == ["pg3", "pg4"]
    leader = around.neighbours.body("repoint")["leader"]
    assert (leader["node"], leader["rule"], leader["postgres"]["timeline"]) == ("pg2", SECOND.as_dict(), 2)
    assert leader["lineage"][-1] == {"timeline": 2, "epoch": 2, "end": None}


async def test_a_pretended_follower_that_refuses_is_asked_again_and_one_that_promised_more_is_not(surround):
    around = surround("pg2")
    await around.look()
    around.neighbours.answers["pg3", "repoint"] = raising(refused("pg3"))
    around.neighbours.answers["pg4", "repoint"] = raising(promised("pg4", 3))
    await told_to_lead(around)
    await around.live(3)
    calls = around.neighbours.calls("repoint")
    assert calls.count("pg3") > 3
    assert calls.count("pg4") == 1


async def test_a_leader_that_is_reaffirmed_is_not_promoted(surround):
    around = surround("pg1")
    again = next_rule([FIRST], "pg1", 2)
    await told_to_lead(around, need=Need(2, FIRST.followers), rule=again)
    await around.live(3)
    assert "promote" not in around.journal
    assert not around.state.archive_held
    assert around.leading.rule == again


async def test_who_promised_more_does_not_lead(surround):
    around = surround("pg2")
    await around.ask("fence", {"epoch": 2, "controller": "pg3/c"})
    await around.ask("fence", {"epoch": 3, "controller": "pg4/d"})
    around.journal.clear()
    for other in (lead_body(), lead_body(epoch=3, controller="pg3/c"), lead_body(epoch=4)):
        with pytest.raises(CallFailed) as failure:
            await around.ask("lead", other)
        assert failure.value.body["error"]["code"] == "promised"
    await around.live(3)
    assert around.journal == []


async def test_a_promise_between_the_call_and_the_promotion_stops_it(surround):
    """The call is accepted while a fence of a higher epoch holds the lock."""
    around = surround("pg2")
    await around.ask("fence", {"epoch": 2, "controller": "pg3/c"})
    around.journal.clear()
    async with around.agent.lock:
        await around.ask("lead", lead_body())
        await around.live(0.1)
        around.state.set_promise(3, "pg4/d")
    await around.live(3)
    assert around.journal == []


async def test_a_promise_while_the_row_waits_stops_the_commit(surround):
    around = surround("pg2")
    await around.look()
    stay_behind(around, "pg3", "pg4")
    await told_to_lead(around)
    await around.live(2)
    await around.ask("fence", {"epoch": 3, "controller": "pg4/d"})
    around.journal.clear()
    for standby in around.server.standbys.values():
        standby.flushed = None
    await around.live(2)
    assert around.server.applied["synchronous_standby_names"] == FENCED
    assert around.neighbours.calls("retarget") == []
    assert around.state.committed == FIRST
    assert around.leading.rule is None


async def test_a_promise_at_the_commit_point_leaves_the_setting_of_the_fence(surround):
    """The row is on its quorum, but the fence got the lock first."""
    around = surround("pg2")
    await around.look()
    stay_behind(around, "pg3", "pg4")
    await told_to_lead(around)
    await around.live(2)
    async with around.agent.lock:
        for standby in around.server.standbys.values():
            standby.flushed = None
        await around.live(0.2)
        around.state.set_promise(3, "pg4/d")
    await around.live(2)
    assert FINAL not in around.journal
    assert around.neighbours.calls("retarget") == []


async def test_a_promotion_that_does_not_end_writes_no_row(surround):
    around = surround("pg2")
    await around.look()
    around.server.before["pg_promote"] = raising(Silent("PostgreSQL of this host: no answer"))
    await told_to_lead(around)
    await around.live(3)
    assert "row 2.0" not in around.journal
    assert around.neighbours.calls("repoint") == []


async def test_a_candidate_that_lost_its_connection_commits_the_row_again(surround):
    around = surround("pg2")
    await around.look()
    stay_behind(around, "pg3", "pg4")
    await told_to_lead(around)
    await around.live(2)
    around.server.before["pg_stat_replication WHERE flush_lsn"] = raising(Silent("PostgreSQL of this host: no answer"))
    await around.live(2)
    around.server.before.clear()
    for standby in around.server.standbys.values():
        standby.flushed = None
    await around.live(3)
    assert around.leading.rule == SECOND
    assert around.journal.count("row 2.0") > 1


# A restarted agent


def half_promoted(around):
    """Its WAL has the row, and nobody knows whether it was committed."""
    server = around.server
    server.in_recovery, server.timeline, server.rules = False, 2, [FIRST, SECOND]
    (server.data / "standby.signal").unlink()
    (server.data / "pg_wal" / "00000002.history").write_text(f"1\t0/{LSN:X}\tno\n")
    server.write_conf({"synchronous_standby_names": FENCED})
    server.take_up()
    around.journal.clear()
    around.state.set_promise(2, "pg3/c")


async def test_a_row_that_may_not_be_committed_is_committed_again_under_both_rules(surround):
    """One of pg3 and pg4 would do for rule 2.0, and one of them for 1.0, of whose two pg2 itself is one."""
    around = surround("pg2")
    half_promoted(around)
    around.server.standbys = {"pg3": Standby(flushed=LSN), "pg4": Standby(flushed=LSN)}
    await around.live(5)
    assert around.leading.rule is None
    assert around.server.applied["synchronous_standby_names"] == FENCED
    assert around.neighbours.calls("retarget") == []
    around.server.standbys["pg4"].flushed = None
    await around.live(2)
    assert around.leading.rule == SECOND
    assert around.neighbours.calls("retarget") == ["pool1", "pool2"]


async def test_the_setting_alone_proves_no_commit(surround):
    around = surround("pg2")
    half_promoted(around)
    around.server.write_conf({"synchronous_standby_names": FINAL.partition(" = ")[2]})
    around.server.take_up()
    await around.live(5)
    assert around.journal.count("row 2.0") == 1
    assert around.leading.rule is None
    assert around.server.applied["synchronous_standby_names"] == FENCED


async def test_who_wrote_down_that_its_rule_is_committed_leads_on(surround):
    around = surround("pg1")
    around.state.hold_archive(True)
    await around.live(3)
    assert around.leading.rule == FIRST
    assert around.neighbours.calls("retarget") == ["pool1", "pool2"]
    assert around.journal == ["pool1 retarget", "pool2 retarget"]
    assert not around.state.archive_held


async def test_with_another_setting_than_the_rules_the_rule_is_committed_again(surround):
    around = surround("pg1")
    around.server.write_conf({"synchronous_standby_names": FENCED})
    around.server.take_up()
    await around.live(3)
    assert around.journal.count("row 1.0") == 1
    assert around.server.applied["synchronous_standby_names"] == 'ANY 2 ("pg2", "pg3", "pg4")'
