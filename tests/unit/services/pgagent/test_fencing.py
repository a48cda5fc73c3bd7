"""Taking a node's part in acknowledgements away, on a pretended PostgreSQL (fence.py, agent.py)."""

import asyncio

import pytest

from devmentor.pgagent.peers import CallFailed
from devmentor_ha.rules import next_rule
from tests.unit.services.pgagent.pretended import FENCED, FIRST, LSN

CALL = {"epoch": 2, "controller": "pg3/c"}


def code(failure):
    return failure.value.body["error"]["code"]


async def test_a_follower_loses_its_receiver_for_good_and_tells_where_its_wal_ends(surround):
    around = surround("pg2")
    answer = await around.ask("fence", CALL)
    order = around.journal
    assert order.index("primary_conninfo = ") < order.index("replay paused") < order.index("receiver ended")
    assert order.index("receiver ended") < order.index("replay resumed")
    assert around.server.receiver is None
    assert around.server.conf["restore_command"] == ""
    assert around.server.conf["ha.promised"] == "2 pg3/c"
    told = {"mode": "follower", "lsn": LSN, "timeline": 1, "rules": [FIRST.as_dict()], "committed": FIRST.as_dict()}
    assert answer == told


async def test_a_receiver_that_was_being_started_is_ended_too(surround):
    """The startup process had asked for it before it saw the new settings."""
    around = surround("pg2")
    late = iter([6001, 6002])

    def kill(pid, number):
        around.journal.append(f"end {pid}")
        around.server.receiver = next(late, None)

    around.server.kill = kill
    await around.ask("fence", CALL)
    assert [line for line in around.journal if line.startswith("end")][1:] == ["end 6001", "end 6002"]


async def test_the_promise_is_on_disk_before_anything_is_done(surround):
    around = surround("pg2")
    seen = []
    around.server.before["ALTER SYSTEM SET ha.promised"] = lambda: seen.append(
        (around.settings.state_dir / "promise.json").read_text()
    )
    await around.ask("fence", CALL)
    assert '"epoch": 2' in seen[0]


async def test_readers_that_hold_replay_up_are_ended(surround):
    around = surround("pg2")
    around.server.readers_hold_up = True
    await around.ask("fence", CALL)
    assert "end readers" in around.journal


async def test_a_server_that_does_not_answer_counts_for_nothing_and_its_promise_stands(surround):
    around = surround("pg2")
    around.server.silent = True
    with pytest.raises(CallFailed) as failure:
        await around.ask("fence", CALL)
    assert code(failure) == "refused"
    assert around.state.promise.epoch == 2


async def test_replay_goes_on_where_a_fence_gives_up(surround):
    around = surround("pg2")
    around.server.kill = lambda pid, number: None
    with pytest.raises(CallFailed):
        await around.ask("fence", CALL)
    assert around.journal[-1] == "replay resumed"


async def test_a_leader_waits_for_nobody_that_exists_before_its_senders_are_ended(surround):
    around = surround("pg1")
    around.server.senders = [81, 82]
    answer = await around.ask("fence", CALL)
    order = around.journal
    assert order.index(f"synchronous_standby_names = {FENCED}") < order.index("end senders [81, 82]")
    assert answer["mode"] == "leader"


async def test_senders_that_do_not_end_are_no_fence(surround):
    around = surround("pg1")
    around.server.senders = [81]
    around.server.before["unnest"] = lambda: around.server.senders.append(83)
    around.server._statements["unnest"] = lambda *_: None
    with pytest.raises(CallFailed) as failure:
        await around.ask("fence", CALL)
    assert code(failure) == "refused"


@pytest.mark.parametrize(
    ("second", "admitted"),
    [
        ({"epoch": 2, "controller": "pg3/c"}, True),
        ({"epoch": 2, "controller": "pg4/d"}, False),
        ({"epoch": 1, "controller": "pg3/c"}, False),
        ({"epoch": 3, "controller": "pg4/d"}, True),
    ],
)
async def test_no_epoch_below_the_promise_is_served_and_this_one_for_its_controller_alone(surround, second, admitted):
    around = surround("pg2")
    await around.ask("fence", CALL)
    if admitted:
        await around.ask("fence", second)
        return
    with pytest.raises(CallFailed) as failure:
        await around.ask("fence", second)
    assert code(failure) == "promised"
    assert around.state.promise.epoch == 2


@pytest.mark.parametrize("change", ["stopped", "busy", "observes"])
async def test_what_does_not_run_or_must_not_be_touched_promises_nothing(surround, change):
    around = surround("pg2", observe_only=change == "observes")
    if change == "stopped":
        around.server.pid = None
    if change == "busy":
        around.agent.busy = "rejoin"
    with pytest.raises(CallFailed) as failure:
        await around.ask("fence", CALL)
    assert code(failure) == "refused"
    assert around.state.promise.epoch == 0
    assert around.journal == []


async def test_a_fence_does_not_wait_for_a_long_work_that_holds_the_lock(surround):
    """It would come late, for a controller that has given up."""
    around = surround("pg2")
    async with around.agent.lock:
        around.agent.busy = "rejoin"
        with pytest.raises(CallFailed) as failure:
            await asyncio.wait_for(around.ask("fence", CALL), 1)
    assert code(failure) == "refused"


async def test_a_leader_that_is_demoted_promises_first_and_ends_one_byte_after_its_checkpoint(surround):
    around = surround("pg1")
    await around.look()
    promised_then = []
    stop = around.server.kill
    around.server.kill = lambda pid, number: (promised_then.append(around.state.promise.epoch), stop(pid, number))
    answer = await around.ask("demote", CALL)
    assert promised_then == [2]
    assert (answer["mode"], answer["lsn"], answer["timeline"]) == ("demoted", LSN + 1, 1)
    assert around.server.conf["synchronous_standby_names"] == FENCED
    assert around.leading.rule is None


async def test_a_demoted_leader_that_did_not_stop_cleanly_counts_for_nothing(surround):
    around = surround("pg1")
    await around.look()
    around.server.control["Database cluster state"] = "in production"
    with pytest.raises(CallFailed, match="did not stop cleanly"):
        await around.ask("demote", CALL)
    assert around.state.promise.epoch == 2


async def test_a_follower_is_not_demoted(surround):
    around = surround("pg2")
    await around.look()
    with pytest.raises(CallFailed, match="does not lead"):
        await around.ask("demote", CALL)
    assert around.state.promise.epoch == 0


async def test_who_is_repointed_again_while_it_is_started_is_not_stopped_for_that(surround):
    """The candidate asks each 3 s; whoever rewinds for longer has several calls waiting."""
    around = surround("pg2")
    await around.ask("fence", CALL)
    around.server.pid = None
    around.server.starts = False
    around.neighbours.lead(next_rule([FIRST], "pg3", 2), timeline=2)
    around.journal.clear()
    body = {**CALL, "leader": around.neighbours.status["pg3"]}
    await around.ask("repoint", body)
    assert around.journal == ["start"]
    around.server.activating = True
    await around.ask("repoint", body)
    assert "cancel start" not in around.journal
    around.state.set_following(1, "pg3")
    await around.ask("repoint", body)
    assert "cancel start" in around.journal, "what was done for another epoch may be other data"
    around.server.starts = True
    await around.ask("repoint", body)
    assert "host='10.0.0.3'" in around.server.applied["primary_conninfo"]


async def test_who_promised_another_is_not_repointed(surround):
    around = surround("pg2")
    await around.ask("fence", CALL)
    for other in ({**CALL, "epoch": 3}, {**CALL, "controller": "pg4/d"}):
        with pytest.raises(CallFailed) as failure:
            await around.ask("repoint", {**other, "leader": around.neighbours.status["pg3"]})
        assert code(failure) == "promised"
    assert around.server.conf["primary_conninfo"] == ""
