"""A pooler's agent among pretended peers, with a pretended PgBouncer (pooler.py)."""

import pytest

from devmentor.pgagent.peers import CallFailed
from devmentor_ha.rules import changed_followers, next_rule
from devmentor_ha.textfiles import targets_rule
from tests.unit.services.pgagent.pretended import FIRST

SECOND = next_rule([FIRST], "pg2", 2)
SHRUNK = changed_followers(SECOND, ["pg3"])
FORMER, NOW = "10.0.0.1", "10.0.0.2"
BUSY = "devmentor", FORMER, "active"


@pytest.fixture
async def pooler(surround):
    around = surround("pool1", duties=["pgbouncer"])
    await retarget(around, FIRST)
    around.journal.clear()
    return around


async def retarget(around, rule):
    return await around.ask("retarget", {"rule": rule.as_dict(), "replicas": sorted(rule.followers)})


def follows(around):
    return targets_rule(around.settings.targets_file.read_text())


async def test_the_leaders_word_leads_clients_to_it(pooler):
    status = await retarget(pooler, SECOND)
    assert (status["epoch"], status["leader"], status["target"]) == (2, "pg2", NOW)
    assert follows(pooler) == (2, 0, "pg2")
    assert pooler.bouncer.hosts == {
        "devmentor": NOW,
        "devmentor_ro": "10.0.0.3,10.0.0.4",
        "devmentor_session": NOW,
    }


async def test_without_the_leaders_word_it_asks_the_pretended_peers(pooler):
    pooler.neighbours.status["pg4"]["committed"] = SECOND.as_dict()
    await pooler.live(3)
    assert follows(pooler) == (2, 0, "pg2")


async def test_what_no_peer_calls_committed_is_not_followed(pooler):
    pooler.neighbours.status["pg2"].update(rule=SECOND.as_dict(), committing=SECOND.as_dict())
    await pooler.live(10)
    assert follows(pooler) == (1, 0, "pg1")


@pytest.mark.parametrize("lower", [FIRST, SECOND])
async def test_it_never_goes_back_to_a_lower_rule(pooler, lower):
    await retarget(pooler, SHRUNK)
    await retarget(pooler, lower)
    assert follows(pooler) == (2, 1, "pg2")
    pooler.state.committed = lower
    await pooler.live(10)
    assert follows(pooler) == (2, 1, "pg2")
    assert pooler.bouncer.hosts["devmentor"] == NOW


async def test_only_an_entry_with_clients_at_work_on_another_node_loses_its_clients(pooler):
    pooler.bouncer.servers = [
        BUSY,
        ("devmentor_session", FORMER, "idle"),
        ("devmentor_session", NOW, "active"),
        ("devmentor_ro", FORMER, "active"),
    ]
    await retarget(pooler, SECOND)
    assert [line for line in pooler.journal if line.startswith("KILL")] == ["KILL devmentor"]
    assert pooler.bouncer.paused == set(), "KILL pauses an entry"


async def test_clients_at_work_on_the_leader_itself_are_not_dropped(pooler):
    """A change of followers only."""
    await retarget(pooler, SECOND)
    pooler.bouncer.servers = [("devmentor", NOW, "active")]
    await retarget(pooler, SHRUNK)
    assert "KILL devmentor" not in pooler.journal


async def test_targets_are_loaded_before_clients_are_dropped_and_resumed_last(pooler):
    pooler.bouncer.servers = [BUSY]
    pooler.bouncer.paused = {"devmentor"}
    await retarget(pooler, SECOND)
    assert pooler.journal == ["RELOAD", "KILL devmentor", "RESUME devmentor"]


async def test_a_retarget_that_was_interrupted_is_finished(pooler):
    pooler.bouncer.down = True
    with pytest.raises(CallFailed):
        await retarget(pooler, SECOND)
    pooler.bouncer.down = False
    assert pooler.bouncer.hosts["devmentor"] == FORMER
    pooler.neighbours.status["pg2"]["committed"] = SECOND.as_dict()
    await pooler.live(3)
    assert pooler.bouncer.hosts["devmentor"] == NOW


async def test_where_all_is_done_nothing_is_reloaded(pooler):
    await pooler.live(20)
    assert pooler.journal == []


async def test_a_pause_that_does_not_end_in_time_is_taken_back(pooler):
    pooler.bouncer.stuck = True
    pooler.bouncer.paused = {"devmentor"}
    with pytest.raises(CallFailed, match="do not end in 2 s; resumed"):
        await pooler.ask("pool", {"action": "pause", "deadline_s": 2})
    assert pooler.bouncer.paused == set()
    assert "KILL devmentor_session" not in pooler.journal


async def test_a_pause_drops_the_sessions_last_and_a_resume_ends_it(pooler):
    await pooler.ask("pool", {"action": "pause", "deadline_s": 2})
    assert pooler.journal == ["PAUSE devmentor", "KILL devmentor_session"]
    assert pooler.bouncer.paused == {"devmentor", "devmentor_session"}
    await pooler.ask("pool", {"action": "resume"})
    assert pooler.bouncer.paused == set()
