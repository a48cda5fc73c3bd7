"""A follower of a pretended leader: stopped, it is started, or waits, or is brought in line first (starting.py)."""

import pytest

from devmentor.pgagent.postgres import LocalError
from devmentor_ha.rules import changed_followers, next_rule
from tests.unit.services.pgagent.pretended import CLOCK, FENCED, FIRST, LSN, control_data, replayed_to

SECOND = next_rule([FIRST], "pg3", 2)  # pg3 leads pg2 and pg4
WITHOUT = changed_followers(FIRST, ["pg3", "pg4"])  # the rule does without pg2


async def test_a_stopped_follower_is_started_and_again_each_two_seconds(surround):
    around = surround("pg2")
    around.server.pid, around.server.starts = None, False
    await around.live(9)
    assert 4 <= around.journal.count("start") <= 5
    around.server.starts = True
    await around.live(3)
    assert around.agent.running
    assert around.server.receiver is not None


async def test_a_stopped_follower_that_replayed_beyond_the_fork_is_rewound_and_not_started_for_ever(surround):
    around = surround("pg2", rule=SECOND)
    around.server.pid = None
    around.server.control = replayed_to(LSN + 8)
    around.neighbours.lead(SECOND, timeline=2)
    around.neighbours.status["pg3"]["postgres"]["checkpoint_timeline"] = 1
    await around.live(5)
    assert around.journal == [], "pg3 cannot be rewound from before its first checkpoint, and starting is in vain"
    around.neighbours.status["pg3"]["postgres"]["checkpoint_timeline"] = 2
    await around.live(5)
    assert around.journal.index("pg_rewind") < around.journal.index("start")
    assert around.agent.running


@pytest.mark.parametrize("why", ["paused", "observes", "busy"])
async def test_a_stopped_server_that_is_none_of_the_agents_business_stays_stopped(surround, why):
    around = surround("pg2", observe_only=why == "observes")
    around.server.pid = None
    if why == "paused":
        around.state.set_paused(CLOCK.time() + 100, "maintenance")
    if why == "busy":
        around.agent.busy = "restart"
    await around.live(20)
    assert around.journal == []


@pytest.mark.parametrize("unfit", ["led", "half made", "no data"])
async def test_what_cannot_be_started_waits_for_a_leader_to_follow(surround, unfit):
    around = surround("pg2", rule=SECOND)
    around.server.pid = None
    data = around.server.data
    if unfit == "led":
        (data / "standby.signal").unlink()
    elif unfit == "half made":
        around.state.remake(True)
    else:
        (data / "PG_VERSION").unlink()
    around.neighbours.status["pg3"]["leading"] = None
    await around.live(20)
    assert around.journal == []
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(5)
    assert around.journal[-1].startswith("synchronous_standby_names") or "start" in around.journal
    assert ("pg_basebackup" in around.journal) == (unfit != "led")
    assert not around.state.remaking
    assert around.agent.running


async def test_a_stopped_former_leader_that_promised_more_does_not_rejoin_a_lower_rule(surround):
    around = surround("pg2", rule=SECOND)
    around.server.pid = None
    (around.server.data / "standby.signal").unlink()
    around.neighbours.lead(SECOND, timeline=2)
    around.state.set_promise(3, "pg4/d")
    await around.live(20)
    assert around.journal == []


def stopped_leader(surround):
    around = surround("pg1")
    around.server.pid, around.server.starts = None, False
    return around


async def test_a_stopped_leader_starts_with_its_quorum_where_nobody_promised_more(surround):
    around = stopped_leader(surround)
    around.server.starts = True
    await around.live(20)
    assert around.server.applied["synchronous_standby_names"] == 'ANY 2 ("pg2", "pg3", "pg4")'
    assert around.leading.rule == FIRST


async def test_an_undecided_leader_waits_for_eight_seconds_and_then_starts_fenced(surround):
    """The guard refuses it while others promised more; if nobody leads by then, it can be reaffirmed once it runs."""
    around = stopped_leader(surround)
    around.neighbours.promise("pg3", 2)
    await around.live(7.5)
    assert "synchronous_standby_names" in around.server.conf
    assert around.server.conf["synchronous_standby_names"] != FENCED
    around.server.starts = True
    await around.live(4)
    assert f"synchronous_standby_names = {FENCED}" in around.journal
    await around.live(20)
    assert around.leading.rule.leader == "pg1"
    assert around.leading.rule.epoch > 2


@pytest.mark.parametrize("change", ["too few answer", "nobody promised more"])
async def test_a_leader_that_is_not_undecided_is_not_started_fenced(surround, change):
    around = stopped_leader(surround)
    if change == "too few answer":
        around.neighbours.promise("pg3", 2)
        around.neighbours.silent.update({"pg2", "pg4"})
    await around.live(60)
    assert around.server.conf["synchronous_standby_names"] != FENCED


async def test_undecided_starts_anew_when_it_was_not_in_between(surround):
    around = stopped_leader(surround)
    around.neighbours.promise("pg3", 2)
    await around.live(6)
    around.neighbours.silent.update({"pg2", "pg4"})
    await around.live(6)
    around.neighbours.silent.clear()
    await around.live(6)
    assert around.server.conf["synchronous_standby_names"] != FENCED
    await around.live(8)
    assert around.server.conf["synchronous_standby_names"] == FENCED


# A demoted leader


async def demoted(surround):
    around = surround("pg1")
    await around.live(3)
    await around.ask("demote", {"epoch": 2, "controller": "pg2/c"})
    around.journal.clear()
    return around


async def test_a_leader_that_crashed_is_left_to_the_guard(surround):
    """A candidate that waits for its row may wait for what this one has."""
    around = surround("pg1")
    around.server.pid, around.server.starts = None, False
    around.neighbours.promise("pg3", 2)
    around.neighbours.status["pg3"].update(committing=SECOND.as_dict(), waits_since=CLOCK.time())
    await around.live(4)
    assert around.journal[0] == "start"
    await around.live(8)
    assert around.server.conf["synchronous_standby_names"] == FENCED


async def test_who_stopped_between_its_promotion_and_the_commit_starts_and_waits_to_be_asked(surround):
    around = surround("pg2")
    await around.look()
    (around.server.data / "standby.signal").unlink()
    around.server.in_recovery, around.server.timeline, around.server.pid = False, 2, None
    around.state.set_promise(2, "pg3/c")
    around.neighbours.silent.add("pg1")
    around.server.write_conf({"synchronous_standby_names": 'ANY 2 ("pg1", "pg3")'})
    await around.live(10)
    assert around.journal == [], "it might acknowledge"
    around.server.write_conf({"synchronous_standby_names": FENCED})
    await around.live(10)
    assert "start" in around.journal
    assert around.server.applied["synchronous_standby_names"] == FENCED
    assert around.leading.rule is None


async def test_a_demoted_leader_is_not_started_before_it_knows_whom_to_follow(surround):
    """Started as a leader it would write WAL beyond the fork and have to be rewound."""
    around = await demoted(surround)
    around.neighbours.status["pg3"].update(committing=SECOND.as_dict(), waits_since=CLOCK.time())
    await around.live(6)
    assert around.journal == [], "the candidate's row waits for its quorum"
    around.neighbours.lead(SECOND, timeline=2)
    around.neighbours.status["pg3"]["committing"] = None
    await around.live(4)
    assert around.journal[0] == "start"
    assert around.server.in_recovery
    assert "pg_rewind" not in around.journal


@pytest.mark.parametrize("candidate", ["none", "one whose row is never acknowledged"])
async def test_a_demoted_leader_comes_back_where_nobody_else_comes_to_lead(surround, candidate):
    around = await demoted(surround)
    if candidate != "none":
        around.neighbours.status["pg3"].update(committing=SECOND.as_dict(), waits_since=CLOCK.time())
    await around.live(2.5)
    assert around.journal == []
    await around.live(2.5 if candidate == "none" else 16)
    assert around.journal[0] == "start"
    await around.live(4)
    assert around.leading.rule.leader == "pg1"
    assert around.leading.rule.epoch > 2


# A start of systemd's that is under way


@pytest.mark.parametrize(("activating", "job"), [(True, "1234"), (True, ""), (False, "1234")])
async def test_what_is_being_started_is_not_brought_in_line_before_that_has_ended(surround, activating, job):
    """The guard looked at the data as it was: the server would come up in the middle of a rewind."""
    around = surround("pg2", rule=SECOND)
    around.server.pid, around.server.activating, around.server.job = None, activating, job
    (around.server.data / "standby.signal").unlink()
    around.server.control = control_data(state="in production")
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(4)
    order = around.journal
    assert order.index("cancel start") < order.index("pg_rewind") < order.index("start")
    assert around.agent.running


async def test_a_server_that_comes_up_meanwhile_is_stopped(surround):
    around = surround("pg2")
    around.server.pid, around.server.activating = None, True
    program = around.server.program

    def comes_up(command):
        if "stop" in command:
            around.server.pid = 4711
        return program(command)

    around.server.program = comes_up
    await around.agent.postgres.halt(5, 5)
    assert around.journal == ["cancel start", "stop"]
    assert around.server.pid is None


async def test_where_a_start_does_not_end_nothing_is_changed(surround):
    around = surround("pg2", rule=SECOND)
    around.server.pid, around.server.job = None, "1234"
    (around.server.data / "standby.signal").unlink()
    around.server.control = control_data(state="in production")
    around.neighbours.lead(SECOND, timeline=2)
    program = around.server.program

    def again(command):
        answer = program(command)
        around.server.job = "1234"
        return answer

    around.server.program = again
    with pytest.raises(LocalError, match="does not end its start"):
        await around.agent.postgres.halt(5, 5)
    await around.live(60)
    assert set(around.journal) == {"cancel start"}
    assert not around.state.remaking


async def test_a_start_that_hangs_is_ended_after_half_a_minute_and_not_before(surround):
    around = surround("pg2")
    around.server.pid, around.server.activating = None, True
    await around.live(29)
    assert around.journal == []
    await around.live(5)
    assert around.journal[:2] == ["cancel start", "start"]
    assert around.agent.running


async def test_however_long_it_was_stopped_only_the_age_of_a_start_counts(surround):
    """As after a copy that took hours; and a job that waits, for a mount perhaps, is no start that hangs."""
    around = surround("pg2")
    around.server.pid, around.server.starts = None, False
    await around.live(60)
    around.server.activating, around.server.started_at = True, CLOCK.now
    around.journal.clear()
    await around.live(25)
    around.server.activating, around.server.job = False, "1234"
    await around.live(60)
    assert "cancel start" not in around.journal


async def test_a_start_does_not_meet_what_came_up_or_began_meanwhile(surround):
    around = surround("pg2")
    await around.look()
    around.server.pid = None
    program = around.server.program
    for meanwhile in ("it runs", "rejoin"):
        around.agent.busy = "" if meanwhile == "it runs" else meanwhile

        def shown(command, meanwhile=meanwhile):
            if meanwhile == "it runs" and "show" in command:
                around.server.pid = 4711
            return program(command)

        around.server.program = shown
        await around.duties.starter.start()
        assert around.journal == []
        around.server.pid = None


@pytest.mark.parametrize(
    ("status", "said"),
    [(1, "ActiveState=inactive\nJob=\nInactiveExitTimestampMonotonic=1"), (0, "ActiveState=inactive\nJob=")],
)
async def test_where_systemd_does_not_say_whether_it_starts_nothing_is_changed(surround, status, said):
    around = surround("pg2", rule=SECOND)
    around.server.pid = None
    program = around.server.program
    around.server.program = lambda command: (status, said) if "show" in command else program(command)
    (around.server.data / "standby.signal").unlink()
    around.neighbours.lead(SECOND, timeline=2)
    await around.live(20)
    assert around.journal == []
    assert not around.state.remaking


async def test_where_systemd_does_not_answer_a_running_server_is_not_stopped(surround):
    around = surround("pg2")
    around.server.programs["systemctl"] = 1
    with pytest.raises(LocalError, match="systemctl show"):
        await around.agent.postgres.halt(5, 5)
    assert around.journal == []


async def test_undecided_starts_anew_after_it_ran(surround):
    around = stopped_leader(surround)
    around.neighbours.promise("pg3", 2)
    await around.live(6)
    around.neighbours.silent.update({"pg2", "pg3", "pg4"})  # or it would be reaffirmed
    around.server.pid = 4711
    await around.live(1)
    assert around.agent.running
    around.neighbours.silent.clear()
    await around.look()
    around.server.pid = None
    await around.live(6)
    assert around.server.conf["synchronous_standby_names"] != FENCED
