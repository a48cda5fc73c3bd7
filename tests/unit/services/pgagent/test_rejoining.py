"""How a stopped server is brought in line with a pretended leader (follow.py)."""

import pytest

from devmentor.pgagent.follow import LeaderView
from devmentor.pgagent.postgres import LocalError
from devmentor_ha.rules import next_rule
from tests.unit.services.pgagent.pretended import ADDRESSES, FENCED, FIRST, LSN, control_data, replayed_to

SECOND = next_rule([FIRST], "pg3", 2)


def leader(around, timeline=2, checkpoint=2, rule=SECOND):
    around.neighbours.lead(rule, timeline=timeline)
    around.neighbours.status[rule.leader]["postgres"]["checkpoint_timeline"] = checkpoint
    return LeaderView.from_status(around.neighbours.status[rule.leader], ADDRESSES[rule.leader])


def stopped(surround, node="pg2"):
    around = surround(node)
    around.server.pid = None
    return around


def led(around):
    """pg2's data is a former leader's."""
    (around.server.data / "standby.signal").unlink(missing_ok=True)


async def test_data_that_ends_before_the_fork_starts_as_it_is(surround):
    around = stopped(surround)
    led(around)
    assert (await around.agent.follower.rejoin(leader(around)))[0] == "start"
    assert around.journal[0] == "start"
    assert around.server.in_recovery


@pytest.mark.parametrize("change", ["beyond the fork", "crashed"])
async def test_data_beyond_the_fork_or_of_a_leader_that_crashed_is_rewound(surround, change):
    around = stopped(surround)
    led(around)
    around.server.control = control_data(state="in production" if change == "crashed" else "shut down")
    if change == "beyond the fork":
        around.server.control["Latest checkpoint location"] = f"0/{LSN + 8:X}"
    assert (await around.agent.follower.rejoin(leader(around)))[0] == "rewind"


async def test_a_standby_that_has_replayed_beyond_the_fork_is_rewound(surround):
    """Its last checkpoint is before the fork, its minimum recovery point beyond it: PostgreSQL refuses to start it."""
    around = stopped(surround)
    around.server.control = replayed_to(LSN + 8)
    method, why = await around.agent.follower.plan(leader(around))
    assert (method, "beyond the fork by 8 bytes" in why) == ("rewind", True)
    around.server.control = replayed_to(LSN)
    assert (await around.agent.follower.plan(leader(around)))[0] == "start"


async def test_nothing_is_rewound_before_the_pretended_leaders_first_checkpoint(surround):
    around = stopped(surround)
    led(around)
    around.server.control = control_data(state="in production")
    with pytest.raises(LocalError, match="has not had its first checkpoint"):
        await around.agent.follower.rejoin(leader(around, checkpoint=1))
    assert around.journal == []
    assert not around.state.remaking


async def test_what_rewind_does_not_see_is_copied(surround):
    """The same timeline number of another epoch; and a rule row that the leader lacks on its timeline."""
    around = stopped(surround)
    around.state.set_timelines({"1": 1, "2": 7})
    (around.server.data / "pg_wal" / "00000002.history").write_text(f"1\t0/{LSN:X}\tno\n")
    around.server.control = control_data(timeline=2)
    method, why = await around.agent.follower.plan(leader(around))
    assert (method, "another epoch" in why) == ("reclone", True)
    around.state.set_timelines({"1": 1, "2": 2})
    assert (await around.agent.follower.plan(leader(around)))[0] == "start"
    around.state.know_newest(next_rule([FIRST], "pg2", 2))
    method, why = await around.agent.follower.plan(leader(around))
    assert (method, "no such rule" in why) == ("reclone", True)


@pytest.mark.parametrize("what", ["nothing", "half made", "an unreadable history"])
async def test_what_cannot_be_rewound_is_copied(surround, what):
    around = stopped(surround)
    if what == "nothing":
        (around.server.data / "PG_VERSION").unlink()
    elif what == "half made":
        around.state.remake(True)
    else:
        around.server.control = control_data(timeline=3)
    assert (await around.agent.follower.plan(leader(around)))[0] == "reclone"


@pytest.mark.parametrize("method", ["rewind", "reclone"])
async def test_promise_connection_and_quorum_are_written_again_before_the_start(surround, method):
    """What rewind or a copy brings is the leader's."""
    around = stopped(surround)
    led(around)
    around.state.set_promise(2, "pg4/d")
    around.state.hold_archive(True)
    seen = {}
    signal = around.server.data / "standby.signal"
    around.server.boot = lambda: seen.update(around.server.conf, standby=signal.exists())
    await around.agent.follower.rejoin(leader(around), method)
    assert seen["ha.promised"] == "2 pg4/d"
    assert "host='10.0.0.3'" in seen["primary_conninfo"]
    assert seen["synchronous_standby_names"] == FENCED
    assert seen["standby"]
    assert around.state.following == {"epoch": 2, "leader": "pg3"}
    assert around.state.timelines == {"1": 1, "2": 2}
    assert not around.state.archive_held


async def test_a_rewind_that_fails_becomes_a_copy(surround):
    around = stopped(surround)
    around.server.programs["pg_rewind"] = 1
    assert (await around.agent.follower.rejoin(leader(around), "rewind"))[0] == "reclone"
    assert around.journal[:2] == ["pg_rewind", "pg_basebackup"]


async def test_a_copy_that_fails_leaves_the_data_marked_and_stopped(surround):
    around = stopped(surround)
    around.server.programs["pg_basebackup"] = 1
    with pytest.raises(LocalError, match="pg_basebackup from pg3 failed"):
        await around.agent.follower.rejoin(leader(around), "reclone")
    assert "start" not in around.journal
    assert around.state.remaking, "the start guard refuses it"
    assert around.agent.postgres.has_data, "the old data is still there"


async def test_data_whose_control_file_is_damaged_can_be_copied_anew(surround):
    around = stopped(surround)
    around.server.programs["pg_controldata"] = 1
    with pytest.raises(LocalError, match="pg_controldata"):
        await around.agent.follower.rejoin(leader(around))
    assert (await around.agent.follower.rejoin(leader(around), "reclone"))[0] == "reclone"


async def test_the_history_of_a_timeline_that_the_pretended_leader_lacks_is_forgotten(surround):
    """A server that has seen it wants to follow that timeline and no other."""
    around = surround("pg2")
    path = around.server.data / "pg_wal" / "00000003.history"
    path.write_text(f"1\t0/{LSN:X}\tno\n")
    await around.agent.follower.repoint(leader(around))
    assert not path.exists()
    assert around.journal.index("stop") < around.journal.index("start")


async def test_a_running_follower_whose_history_forked_is_not_repointed(surround):
    around = surround("pg2")
    around.server.lsn = LSN + 8
    before = around.server.conf
    with pytest.raises(LocalError, match="beyond the fork"):
        await around.agent.follower.repoint(leader(around))
    assert around.server.conf == before
    assert around.state.following["leader"] == "pg1"
