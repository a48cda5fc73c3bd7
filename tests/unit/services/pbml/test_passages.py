"""Hits and their neighbours as passages within a budget."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devmentor.pbml.context.fuse import Hit, Piece
from devmentor.pbml.context.passages import SHORTEST_CUT, beside, fit, join, merge, take
from devmentor.pbml.tokens import ByteTokenCounter

BYTES = ByteTokenCounter()


def piece(text: str, number: int = 0, document: str = "d", start: int = 0) -> Piece:
    return Piece(document, 1, number, "document", None, "", text, start, start + len(text))


def hit(text: str, score: float, number: int = 0, document: str = "d", start: int = 0) -> Hit:
    return Hit(piece(text, number, document, start), score, {"index": score})


def spans(passages):
    return [(p.first.chunk, p.last.chunk) for p in passages]


def test_best_first_and_a_shorter_one_may_pass():
    passages = fit([hit("b" * 80, 0.9, 0), hit("c" * 40, 0.7, 2), hit("a" * 30, 0.5, 4)], [], 115, BYTES)
    assert [p.text[0] for p in passages] == ["b", "a"]
    assert sum(p.tokens for p in passages) == 110
    assert not any(p.truncated for p in passages)


def test_the_best_is_cut_rather_than_left_out():
    passages = fit([hit("a" * 100, 0.9), hit("b" * 100, 0.8, 2)], [], 50, BYTES)
    assert [(p.text, p.truncated, p.tokens) for p in passages] == [("a" * 50, True, 50)]


def test_too_little_room_for_anything():
    assert fit([hit("a" * 100, 0.9)], [], SHORTEST_CUT - 1, BYTES) == []


def test_the_same_text_is_given_once():
    passages = fit([hit("same", 0.9, document="x"), hit("same\n", 0.8, document="y")], [], 100, BYTES)
    assert [p.hit.piece.document_id for p in passages] == ["x"]


def test_chunks_that_follow_each_other_are_one_text_as_it_was():
    text = "one two\n\nthree  four\n"
    hits = [hit(text[9:15], 0.5, 1, start=9), hit(text[:9], 0.9, 0), hit(text[15:], 0.4, 2, start=15)]
    passages = fit(hits, [], 100, BYTES)
    assert [(p.text, p.hit.piece.chunk) for p in passages] == [(text.rstrip(), 0)]


def test_between_chunks_without_their_blanks_stands_a_line_end_or_an_empty_line():
    assert join([piece("a", 0), piece("b", 1, start=2), piece("c", 2, start=9)]) == "a\nb\n\nc"


def test_neighbours_come_after_what_both_sources_agree_on():
    hits = [hit("best", 2 / 61, 5), hit("single", 1 / 62, 20)]
    passages = fit(hits, [piece("before", 4), piece("after", 6), piece("of single", 21)], 18, BYTES)
    assert spans(passages) == [(4, 6)], "the neighbours of the best are worth more than another source's second"
    assert spans(fit(hits, [piece("before it", 4), piece("after it", 6)], 10, BYTES)) == [(5, 5), (20, 20)]


def test_a_neighbour_needs_its_hit():
    hits = [hit("short", 0.9, 0, "a"), hit("long" * 50, 0.8, 5, "b")]
    assert spans(fit(hits, [piece("beside the long one", 6, "b")], 100, BYTES)) == [(0, 0)]


def test_a_neighbour_with_a_text_that_is_there_is_not_given_again():
    hits = [hit("same", 0.9, 0, "a"), hit("other", 0.8, 5, "b")]
    assert spans(fit(hits, [piece("same", 6, "b")], 100, BYTES)) == [(0, 0), (5, 5)]


def test_what_is_worth_least_goes_where_joined_texts_cost_more():
    class Square(Nasty):
        def count(self, text):
            return len(text) ** 2

    hits = [hit("aa", 0.9, 0), hit("bb", 0.8, 1), hit("cc", 0.7, 2)]
    passages = fit(hits, [], 17, Square())
    assert [(p.text, p.tokens) for p in passages] == [("aabb", 16)]


def test_beside():
    assert beside([hit("x", 0.9, 0), hit("y", 0.8, 2)]) == [("d", 1, 1), ("d", 1, 3)]


class Nasty:
    """Counts as no tokenizer does: joined texts may cost more than both apart."""

    name = "nasty"
    inline_chars = 0

    def count(self, text: str) -> int:
        return len(text) + hashlib.sha256(text.encode("utf-8", "replace")).digest()[0] % 7

    def cut(self, text: str, tokens: int) -> str:
        beginning = text[: max(0, tokens)]
        while beginning and self.count(beginning) > tokens:
            beginning = beginning[:-1]
        return beginning


CHUNKS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.text("xy \n", min_size=1, max_size=40), st.booleans()),
    unique_by=lambda chunk: chunk[:2],
    max_size=20,
)


@pytest.mark.parametrize("counter", [BYTES, Nasty()])
@settings(deadline=None)
@given(CHUNKS, st.lists(st.floats(0.001, 1), min_size=20, max_size=20), st.integers(0, 300))
def test_never_above_the_budget_and_nothing_twice(counter, chunks, scores, budget):
    hits = [
        hit(text, score, number, document)
        for (document, number, text, is_hit), score in zip(chunks, scores, strict=False)
        if is_hit
    ]
    hits.sort(key=lambda h: (-h.score, h.piece.key))
    neighbours = [piece(text, number, document) for document, number, text, is_hit in chunks if not is_hit]
    passages = fit(hits, neighbours, budget, counter)
    assert sum(p.tokens for p in passages) <= budget
    assert all(p.tokens == counter.count(p.text) for p in passages)
    assert [p.hit.score for p in passages] == sorted((p.hit.score for p in passages), reverse=True)
    keys = [(p.first.document_id, n) for p in passages for n in range(p.first.chunk, p.last.chunk + 1)]
    assert len(keys) == len(set(keys)), "a chunk is in two passages"
    ends = {(p.first.document_id, p.last.chunk + 1) for p in passages}
    assert not ends & {(p.first.document_id, p.first.chunk) for p in passages}, "passages that touch were not joined"
    assert all(p.hit.scores for p in passages), "a passage without a hit"


@settings(deadline=None)
@given(CHUNKS)
def test_merging_keeps_every_chunk(chunks):
    hits = [hit(text, 0.5, number, document) for document, number, text, _ in chunks]
    passages = merge(hits, BYTES)
    assert sorted((p.first.document_id, n) for p in passages for n in range(p.first.chunk, p.last.chunk + 1)) == sorted(
        h.piece.key[::2] for h in hits
    )


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=10), st.integers(0, 60))
def test_take_keeps_the_order_and_the_budget(texts, budget):
    kept, spent = take(enumerate(texts), budget, BYTES)
    assert spent == sum(tokens for _, tokens in kept) <= budget
    numbers = [number for number, _ in kept]
    assert numbers == sorted(numbers)
    assert all(BYTES.count(texts[number]) + spent > budget for number in set(range(len(texts))) - set(numbers))
