"""Fitting to the budget, the name of what was retrieved, and what could not be."""

from hypothesis import given
from hypothesis import strategies as st
from pbml_doubles import Ledger
from prometheus_client import REGISTRY

from devmentor.pbml.context import Candidate, ContextService, context_version, fit_chunks, fit_turns
from devmentor.pbml.models import ContextRequest
from devmentor.pbml.settings import Settings
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.ledger import Pending, Turn
from devmentor.pbml.store.versions import count_failure
from devmentor.pbml.tokens import ByteTokenCounter

BYTES = ByteTokenCounter()


def candidate(text: str, score: float, document: str = "d", version: int = 1, number: int = 0) -> Candidate:
    return Candidate(document, version, number, "document", None, "", text, score, "index")


def pending(document: str, version: int) -> Pending:
    return Pending(1, document, version, "document", None, "text")


def test_best_first_and_a_shorter_one_may_pass():
    chosen, spent = fit_chunks(
        [candidate("a" * 30, 0.5), candidate("b" * 80, 0.9), candidate("c" * 40, 0.7)], 115, BYTES
    )
    assert [item["text"][0] for item in chosen] == ["b", "a"]
    assert spent == 110
    assert not any(item["truncated"] for item in chosen)


def test_the_best_is_cut_rather_than_left_out():
    chosen, spent = fit_chunks([candidate("a" * 100, 0.9), candidate("b" * 100, 0.8)], 50, BYTES)
    assert [(item["text"], item["truncated"]) for item in chosen] == [("a" * 50, True)]
    assert spent == 50


def test_too_little_room_for_anything():
    assert fit_chunks([candidate("a" * 100, 0.9)], 10, BYTES) == ([], 0)


def test_the_same_text_is_given_once():
    chosen, _ = fit_chunks([candidate("same", 0.9, "x"), candidate("same", 0.8, "y")], 100, BYTES)
    assert [item["document_id"] for item in chosen] == ["x"]


@given(st.lists(st.tuples(st.text(min_size=1, max_size=50), st.floats(-1, 1)), max_size=20), st.integers(0, 300))
def test_never_above_the_budget(pieces, budget):
    chosen, spent = fit_chunks([candidate(text, score) for text, score in pieces], budget, BYTES)
    assert spent == sum(BYTES.count(item["text"]) for item in chosen) <= budget
    scores = [item["score"] for item in chosen]
    assert scores == sorted(scores, reverse=True)


def test_turns_are_the_latest_without_a_gap_in_their_order():
    newest_first = [Turn(3, "3", "user", "cc"), Turn(2, "2", "assistant", "b" * 50), Turn(1, "1", "user", "a")]
    assert fit_turns(newest_first, 100, BYTES)[0] == newest_first[::-1]
    assert fit_turns(newest_first, 10, BYTES) == ([newest_first[0]], 2)


def test_a_pending_version_hides_the_older_live_one_only():
    live = [candidate("old", 0.9, "a", 1), candidate("other", 0.8, "b", 1), candidate("newer", 0.7, "c", 5)]
    kept = ContextService._without_replaced(live, [pending("a", 2), pending("c", 4)])
    assert [c.text for c in kept] == ["other", "newer"]


def test_context_version_tells_states_apart():
    plain = context_version(3, 2, [])
    assert plain == context_version(3, 2, [])
    with_pending = [context_version(3, 2, [pending("a", 2)]), context_version(3, 2, [pending("a", 3)])]
    assert len({plain, context_version(4, 2, []), context_version(3, 3, []), *with_pending}) == 5
    both = [pending("a", 2), pending("b", 1)]
    assert context_version(3, 2, both) == context_version(3, 2, both[::-1])


class Nothing:
    """An embedder that works and an index that is empty."""

    async def embed(self, texts):
        return [[1.0, 0.0] for _ in texts]

    async def search(self, *_where, **_how):
        return []


async def fetch(ledger: Ledger, **request):
    service = ContextService(Settings(tenants_file=None), ledger, Nothing(), Nothing(), BYTES)
    return await service.fetch("t", ContextRequest(query="text", token_budget=100, **request))


async def test_a_watermark_says_which_versions_the_answer_does_not_draw_on():
    ledger = Ledger()
    for name in ("bad", "waits", "late"):
        await accept_document(ledger, "t", name, None, {}, f"text of {name}")
    await count_failure(ledger, "t", "bad", 1, "TextRefused: no", 1)
    before = REGISTRY.get_sample_value("pbml_fetch_missing_total", {"state": "failed"}) or 0
    body = await fetch(ledger, watermark="pg:2")
    assert [chunk["document_id"] for chunk in body["chunks"]] == ["waits"]
    assert body["missing"] == {"failed": 1, "unindexed": 0}
    assert (await fetch(ledger))["missing"] == {"failed": 1, "unindexed": 2}
    assert REGISTRY.get_sample_value("pbml_fetch_missing_total", {"state": "failed"}) == before + 2


async def test_a_turn_is_out_of_every_answer_once_its_deletion_is_acknowledged():
    ledger = Ledger()
    turn = await accept_turn(ledger, "t", "c", "~turn/c/1", "user", "text of the turn")
    before = await fetch(ledger, conversation_id="c", watermark=f"pg:{turn.seq}")
    assert before["turns"] == [{"role": "user", "content": "text of the turn"}]
    deletion = await accept_deletion(ledger, "t", "~turn/c/1")
    after = await fetch(ledger, conversation_id="c", watermark=f"pg:{deletion.seq}")
    assert (after["turns"], after["chunks"]) == ([], [])
    assert after["context_version"] != before["context_version"]
