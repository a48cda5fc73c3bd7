"""What the ledger tells readers, against its own statements on a ledger in memory."""

import pytest
from pbml_doubles import Ledger

from devmentor.pbml.store import versions
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.ledger import Missing, document_status, missing_versions, pending_versions, recent_turns
from devmentor.pbml.store.versions import count_failure


@pytest.fixture
def c() -> Ledger:
    return Ledger()


async def ingest(c: Ledger, document: str = "d", *, fail: bool = False) -> int:
    """The new version's seq."""
    accepted = await accept_document(c, "t", document, None, {}, "text")
    if fail:
        await count_failure(c, "t", document, accepted.version, "TextRefused: no", 1)
    return accepted.seq


async def missing(c: Ledger, up_to=None, *, conversation=None, ids=None, served=()) -> Missing:
    return await missing_versions(c, "t", up_to, conversation, ids, served)


async def make_live(c: Ledger, document: str, number: int) -> None:
    [found] = await versions.load_versions(c, [("t", document, number)], 100, large_texts=False)
    c.db.execute("UPDATE versions SET status = 'indexed' WHERE document_id = ? AND version = ?", (document, number))
    assert await versions.go_live(c, [found.version]) == [True]


async def test_a_version_that_was_given_up_is_in_the_status_and_in_the_count(c):
    await ingest(c)
    await make_live(c, "d", 1)
    await ingest(c, fail=True)
    status = await document_status(c, "t", "d")
    assert (status["status"], status["failure"], status["live_version"]) == ("failed", "TextRefused: no", 1)
    assert await missing(c) == Missing(failed=1, unindexed=0)


async def test_a_version_is_missing_from_its_watermark_on_until_it_is_served_or_live(c):
    before = await ingest(c, "other", fail=True)
    seq = await ingest(c)
    assert await missing(c, before) == Missing(1, 0)
    assert await missing(c, seq) == Missing(1, 1)
    assert await missing(c, seq, served=[seq]) == Missing(1, 0)
    await make_live(c, "d", 1)
    assert await missing(c, seq) == Missing(1, 0)


async def test_what_a_newer_version_or_a_deletion_replaces_is_not_missing(c):
    await ingest(c, fail=True)
    newer = await ingest(c)
    assert await missing(c) == Missing(0, 1)
    assert await missing(c, newer - 1) == Missing(1, 0)
    await make_live(c, "d", 2)
    assert await missing(c) == Missing(0, 0)
    await ingest(c, "gone", fail=True)
    await accept_deletion(c, "t", "gone")
    assert await missing(c) == Missing(0, 0)


async def test_an_older_version_that_is_served_does_not_hide_the_newer_one_that_failed(c):
    older = await ingest(c)
    failed = await ingest(c, fail=True)
    served = [p.seq for p in await pending_versions(c, "t", failed, None, None, 8)]
    assert served == [older]
    assert await missing(c, failed, served=served) == Missing(1, 0)


async def test_only_what_the_request_asks_of_is_counted(c):
    await ingest(c, "a", fail=True)
    await ingest(c, "b")
    await accept_turn(c, "t", "c", "~turn/c/1", "user", "hello")
    await accept_turn(c, "t", "elsewhere", "~turn/elsewhere/1", "user", "hello")
    assert await missing(c) == Missing(1, 1)
    assert await missing(c, ids=["a"]) == Missing(1, 0)
    assert await missing(c, conversation="c", ids=["b"]) == Missing(0, 2)
    assert await missing_versions(c, "u", None, None, None, []) == Missing(0, 0)


async def test_a_deleted_turn_is_not_served_from_the_deletion_on(c):
    for name in ("1", "2"):
        await accept_turn(c, "t", "c", f"~turn/c/{name}", "user", f"turn {name}")
    assert [turn.content for turn in await recent_turns(c, "t", "c", 9)] == ["turn 2", "turn 1"]
    await accept_deletion(c, "t", "~turn/c/2")
    assert [turn.content for turn in await recent_turns(c, "t", "c", 9)] == ["turn 1"]
    assert "turn 2" in c.texts, "its text is still there: the job has not run"
