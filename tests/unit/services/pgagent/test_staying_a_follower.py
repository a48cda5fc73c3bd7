"""A follower of a pretended leader: streams, is repointed, copied anew (duties.py, "Serve")."""

import asyncio

import pytest

from devmentor.pgagent.peers import CallFailed
from devmentor_ha.rules import changed_followers, next_rule
from tests.unit.services.pgagent.pretended import CLOCK, FIRST, LSN

SECOND = next_rule([FIRST], "pg3", 2)  # pg3 leads pg2 and pg4
WITHOUT = changed_followers(FIRST, ["pg3", "pg4"])  # the rule does without pg2


def connection(around):
    return around.server.applied.get("primary_conninfo", "")


async def test_who_streams_from_the_rules_leader_is_left_alone(surround):
    around = surround("pg2")
    await around.live(60)
    assert around.journal == []


async def test_it_turns_to_the_pretended_leader_of_a_higher_committed_rule(surround):
    around = surround("pg2")
    await around.live(3)
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(3)
    assert "host='10.0.0.3'" in connection(around)
    assert around.state.following == {"epoch": 2, "leader": "pg3"}
    assert around.state.timelines == {"1": 1, "2": 2}
    assert "stop" not in around.journal


async def test_it_turns_to_nobody_whose_rule_is_not_known_to_be_committed(surround):
    around = surround("pg2")
    await around.live(3)
    around.neighbours.status["pg3"].update(rule=SECOND.as_dict(), rules=[FIRST.as_dict(), SECOND.as_dict()])
    around.neighbours.status["pg1"]["leading"] = None
    await around.live(20)
    assert around.journal == []


async def test_who_promised_more_than_the_rule_stays_fenced(surround):
    around = surround("pg2")
    await around.ask("fence", {"epoch": 3, "controller": "pg4/d"})
    around.neighbours.lead(SECOND, timeline=2)
    around.journal.clear()
    await around.live(30)
    assert around.journal == []
    assert connection(around) == ""


async def test_who_was_fenced_for_the_rules_epoch_follows_it(surround):
    around = surround("pg2")
    await around.ask("fence", {"epoch": 2, "controller": "pg4/d"})
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(5)
    assert "host='10.0.0.3'" in connection(around)
    assert "wal_retrieve_retry_interval" not in around.server.applied, "what the fence had set is reset"


async def test_where_its_history_is_no_part_of_the_pretended_leaders_it_rewinds(surround):
    around = surround("pg2")
    await around.live(3)
    around.server.lsn = LSN + 500
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(3)
    assert around.journal.index("stop") < around.journal.index("pg_rewind") < around.journal.index("start")


# Does not stream


async def test_the_histories_are_compared_again_each_five_seconds_and_not_more_often(surround):
    around = surround("pg2")
    await around.live(3)
    around.server.streams, around.server.receiver = False, None
    asked = []
    around.server.before["ALTER SYSTEM SET primary_conninfo"] = lambda: asked.append(CLOCK.now)
    await around.live(30)
    assert 5 <= len(asked) <= 7


async def test_a_slot_that_lost_its_wal_means_a_new_copy_at_once(surround):
    around = surround("pg2")
    await around.live(3)
    around.server.streams, around.server.receiver = False, None
    for slot in around.neighbours.status["pg1"]["postgres"]["slots"]:
        slot["wal_status"] = "lost" if slot["name"] == "pg2" else "reserved"
    await around.live(3)
    assert "pg_basebackup" in around.journal


async def stuck(surround, rule=WITHOUT):
    around = surround("pg2", rule=rule)
    await around.live(3)
    around.server.streams, around.server.receiver = False, None
    return around


async def test_stuck_for_a_minute_outside_the_rule_it_is_copied_anew_and_not_before(surround):
    around = await stuck(surround)
    await around.live(58)
    assert "pg_basebackup" not in around.journal
    await around.live(8)
    assert "pg_basebackup" in around.journal
    assert around.server.applied["ha.promised"].startswith("1 ")


async def test_a_follower_that_the_rule_needs_is_never_copied_anew_for_being_stuck(surround):
    """Its data may be the only copy of what was acknowledged."""
    around = await stuck(surround, rule=FIRST)
    await around.live(300)
    assert "stop" not in around.journal


async def test_stuck_where_the_pretended_leaders_server_does_not_answer_it_keeps_its_data(surround):
    around = await stuck(surround)
    around.neighbours.dead.add("pg1")
    await around.live(300)
    assert "stop" not in around.journal
    around.neighbours.dead.clear()
    around.server.streams = True
    await around.live(8)
    assert around.server.receiver is not None
    assert "stop" not in around.journal


async def test_a_leader_that_was_away_gets_a_minute_to_let_it_stream(surround):
    around = await stuck(surround)
    await around.live(10)
    around.neighbours.lose("pg1")
    await around.live(90)
    around.neighbours.silent.clear()
    around.neighbours.dead.clear()
    await around.live(5)
    assert "stop" not in around.journal
    await around.live(65)
    assert "pg_basebackup" in around.journal


async def test_streaming_now_and_then_is_not_stuck(surround):
    around = await stuck(surround)
    for _ in range(4):
        await around.live(50)
        around.server.receiver = 1
        await around.live(1)
        around.server.receiver = None
    assert "stop" not in around.journal


# Does not run


async def test_a_server_that_lets_nobody_in_is_connected_once_a_leader_is_known(surround):
    """The start guard cleared its connection, and without one it does not become consistent."""
    around = surround("pg2", rule=SECOND)
    around.server.write_conf({"primary_conninfo": ""})
    around.server.take_up()
    around.server.silent, around.server.receiver = True, None
    around.journal.clear()
    around.neighbours.status["pg3"]["leading"] = None
    await around.live(20)
    assert around.journal == []
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(8)
    assert "host='10.0.0.3'" in connection(around)
    assert around.state.following == {"epoch": 2, "leader": "pg3"}


@pytest.mark.parametrize("why", ["it promised more", "it is connected"])
async def test_a_silent_server_is_not_connected_where(surround, why):
    around = surround("pg2", rule=SECOND)
    if why == "it promised more":
        around.server.write_conf({"primary_conninfo": ""})
        around.state.set_promise(3, "pg4/d")
    else:
        around.server.write_conf({"primary_conninfo": "host='10.0.0.4'"})
    around.server.silent = True
    around.neighbours.lead(SECOND, timeline=2)
    before = around.server.conf
    await around.live(20)
    assert around.server.conf == before


# A stopped leader


async def test_an_operators_rejoin_does_not_go_below_the_promise_either(surround):
    around = surround("pg2", rule=SECOND)
    around.neighbours.lead(SECOND, timeline=2)
    around.state.set_promise(3, "pg4/d")
    with pytest.raises(CallFailed, match="could not rejoin"):
        await around.ask("rejoin", {"method": "reclone"})
    assert around.journal == []


# One at a time


async def test_an_operators_rejoin_waits_for_none_and_joins_none_that_is_under_way(surround):
    """A copy may take hours; a second one would remove what the first has copied."""
    around = surround("pg2", rule=SECOND)
    around.server.pid = None
    (around.server.data / "PG_VERSION").unlink()
    copies = []
    ends = asyncio.Event()

    async def copy(leader):
        copies.append(leader.name)
        await ends.wait()

    around.agent.follower._reclone = copy
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(5)
    assert copies == ["pg3"]
    with pytest.raises(CallFailed, match="could not rejoin"):
        await asyncio.wait_for(around.ask("rejoin", {"method": "reclone"}), 30)
    assert copies == ["pg3"]
    assert around.agent.busy == "rejoin"
