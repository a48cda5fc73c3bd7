"""What the ledger tells readers, against its own statements on a ledger in memory."""

import pytest
from pbml_doubles import Ledger

from devmentor.pbml.store.acceptance import accept_deletion, accept_turn
from devmentor.pbml.store.ledger import recent_turns


@pytest.fixture
def c() -> Ledger:
    return Ledger()


async def test_a_deleted_turn_is_not_served_from_the_deletion_on(c):
    for name in ("1", "2"):
        await accept_turn(c, "t", "c", f"~turn/c/{name}", "user", f"turn {name}")
    assert [turn.content for turn in await recent_turns(c, "t", "c", 9)] == ["turn 2", "turn 1"]
    await accept_deletion(c, "t", "~turn/c/2")
    assert [turn.content for turn in await recent_turns(c, "t", "c", 9)] == ["turn 1"]
    assert "turn 2" in c.texts, "its text is still there: the job has not run"
