"""Recent turns, the name of what was retrieved, what could not be, and which sources an answer draws on."""

import pytest
from pbml_doubles import Ledger
from prometheus_client import REGISTRY

from devmentor.pbml.api import answers
from devmentor.pbml.context import ContextService, context_version
from devmentor.pbml.context.fuse import Found, Piece
from devmentor.pbml.context.service import fit_turns, without_replaced
from devmentor.pbml.db import DatabaseUnavailable
from devmentor.pbml.embedder import EmbedderUnavailable
from devmentor.pbml.models import ContextRequest
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import chunks, pins, removal, words
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.chunks import LiveChunk
from devmentor.pbml.store.ledger import Pending, Turn
from devmentor.pbml.store.versions import count_failure
from devmentor.pbml.tokens import ByteTokenCounter

BYTES = ByteTokenCounter()


def pending(document: str, version: int) -> Pending:
    return Pending(1, document, version, "document", None, "text")


def test_turns_are_the_latest_without_a_gap_in_their_order():
    newest_first = [Turn(3, "3", "user", "cc"), Turn(2, "2", "assistant", "b" * 50), Turn(1, "1", "user", "a")]
    assert fit_turns(newest_first, 100, BYTES)[0] == newest_first[::-1]
    assert fit_turns(newest_first, 10, BYTES) == ([newest_first[0]], 2)


def test_a_pending_version_hides_the_older_live_one_only():
    live = [
        Found(Piece(document, version, 0, "document", None, "", "text"), "index", 0.9)
        for document, version in (("a", 1), ("b", 1), ("c", 5))
    ]
    kept = without_replaced(live, [pending("a", 2), pending("c", 4)])
    assert [found.piece.document_id for found in kept] == ["b", "c"]


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


class Everything(Nothing):
    """An index that has three chunks of one document."""

    async def search(self, *_where, **_how):
        return [("d", 1, 4, 0.9), ("d", 1, 8, 0.5)]


def row(number: int, score: float = 0.0, text: str | None = None) -> LiveChunk:
    start, end = number * 20, number * 20 + 20
    return LiveChunk("d", 1, number, "", None, text or f"chunk {number} of it", "document", start, end, score)


@pytest.fixture
def live(monkeypatch):
    """PostgreSQL's part of the two searches: chunks 0 to 9 are live; by words, 8 and 2 are found."""

    async def live_chunks(_c, _tenant, hits):
        return [row(number, score) for _document, _version, number, score in hits if number < 10]

    async def parse(_c, text, _timeout):
        return text.split()

    async def search(_c, _tenant, _plan, **_bounds):
        return [row(8, 3.0), row(2, 2.0)]

    monkeypatch.setattr(chunks, "live_chunks", live_chunks)
    monkeypatch.setattr(words, "parse", parse)
    monkeypatch.setattr(words, "search", search)
    return monkeypatch


async def ask(index, embedder=None, **change):
    settings = Settings(tenants_file=None, **change)
    service = ContextService(settings, Ledger(), index, embedder or Nothing(), BYTES)
    return await service.fetch("t", ContextRequest(query="text", token_budget=500))


async def test_what_both_sources_found_comes_first_with_each_ones_score(live):
    body = await ask(Everything(), fetch_neighbours=0)
    assert [chunk["chunk"] for chunk in body["chunks"]] == [8, 4, 2]
    assert body["chunks"][0]["scores"] == {"index": 0.5, "full_text": 3.0}
    assert [chunk["source"] for chunk in body["chunks"]] == ["index", "index", "full_text"]
    assert (body["degraded"], body["token_counter"]) == (False, "bytes/1")


async def test_hits_come_with_the_chunks_beside_them(live):
    body = await ask(Everything())
    spans = [(chunk["first_chunk"], chunk["chunk"], chunk["last_chunk"]) for chunk in body["chunks"]]
    assert spans == [(7, 8, 9), (1, 4, 5)]
    assert body["chunks"][0]["text"] == "chunk 7 of itchunk 8 of itchunk 9 of it"


async def test_the_search_by_words_may_be_too_slow(live):
    async def slow(*_any):
        raise DatabaseUnavailable("QueryCanceled: statement timeout")

    live.setattr(words, "parse", slow)
    body = await ask(Everything(), fetch_neighbours=0)
    assert [chunk["chunk"] for chunk in body["chunks"]] == [4, 8]
    assert body["degraded_parts"] == ["full_text"]
    assert body["context_version"].endswith(".degraded")


async def test_without_the_embedder_words_answer(live):
    class Away(Nothing):
        async def embed(self, texts):
            raise EmbedderUnavailable("no endpoint")

    body = await ask(Everything(), Away(), fetch_neighbours=0)
    assert [chunk["chunk"] for chunk in body["chunks"]] == [8, 2]
    assert body["degraded_parts"] == ["embedder"]


async def test_pinned_facts_come_first_the_conversation_s_before_the_tenant_s():
    ledger = Ledger()
    for conversation, name in ((pins.OF_TENANT, "b"), (pins.OF_TENANT, "a"), ("c", "z"), ("other", "x")):
        await pins.put(ledger, "t", conversation, name, f"fact {name}", 32)
    await pins.put(ledger, "u", pins.OF_TENANT, "theirs", "fact", 32)
    await accept_document(ledger, "t", "doc", None, {}, "text of doc")
    body = await fetch(ledger, conversation_id="c", watermark="pg:1")
    assert [chunk["text"] for chunk in body["chunks"]] == ["fact z", "fact a", "fact b", "text of doc"]
    assert [chunk["source"] for chunk in body["chunks"]] == ["pin", "pin", "pin", "ledger"]
    assert body["tokens"] == 6 * 3 + 11
    assert [chunk["text"] for chunk in (await fetch(ledger))["chunks"]] == ["fact a", "fact b"]


async def test_pinned_facts_take_their_share_and_no_more():
    ledger = Ledger()
    for name, body in (("a", "x" * 20), ("b", "y" * 10), ("c", "z" * 5)):
        await pins.put(ledger, "t", pins.OF_TENANT, name, body, 32)
    assert [chunk["text"] for chunk in (await fetch(ledger))["chunks"]] == ["x" * 20, "z" * 5]


async def test_a_pin_changes_the_context_version_of_those_who_see_it():
    ledger = Ledger()
    seen = [(await fetch(ledger))["context_version"]]
    assert await pins.put(ledger, "t", pins.OF_TENANT, "a", "fact", 1)
    seen.append((await fetch(ledger))["context_version"])
    assert not await pins.put(ledger, "t", pins.OF_TENANT, "a", "another", 1)
    seen.append((await fetch(ledger))["context_version"])
    await pins.put(ledger, "t", "c", "a", "the conversation's", 1)
    assert (await fetch(ledger))["context_version"] == seen[-1]
    assert await pins.remove(ledger, "t", pins.OF_TENANT, "a")
    seen.append((await fetch(ledger))["context_version"])
    assert len(set(seen)) == 4
    assert not await pins.remove(ledger, "t", pins.OF_TENANT, "a")


async def test_there_are_so_many_pins_and_no_more():
    ledger = Ledger()
    await pins.put(ledger, "t", pins.OF_TENANT, "a", "fact", 1)
    with pytest.raises(pins.TooManyPins):
        await pins.put(ledger, "t", pins.OF_TENANT, "b", "fact", 1)
    await pins.remove_conversation(ledger, "t", pins.OF_TENANT)
    assert await pins.put(ledger, "t", pins.OF_TENANT, "b", "fact", 1)


async def test_pins_go_with_their_conversation():
    ledger = Ledger()
    await pins.put(ledger, "t", "c", "a", "fact of c", 32)
    await pins.put(ledger, "t", "d", "a", "fact of d", 32)
    await removal.delete_turns(ledger, "t", "c")
    assert (await fetch(ledger, conversation_id="c"))["chunks"] == []
    assert [chunk["text"] for chunk in (await fetch(ledger, conversation_id="d"))["chunks"]] == ["fact of d"]


async def test_an_index_that_is_being_filled_is_asked_and_said(live):
    ledger = Ledger()
    ledger.db.execute("UPDATE maintenance SET incomplete = 1 WHERE task = 'rebuild'")
    service = ContextService(Settings(tenants_file=None, fetch_neighbours=0), ledger, Everything(), Nothing(), BYTES)
    body = await service.fetch("t", ContextRequest(query="text", token_budget=500))
    assert [chunk["chunk"] for chunk in body["chunks"]] == [8, 4, 2]
    assert body["degraded_parts"] == ["index"]


async def test_an_answer_is_what_the_openapi_document_says(live):
    body = await ask(Everything())
    assert answers.Found.model_validate(body).model_dump(exclude_unset=True) == body
