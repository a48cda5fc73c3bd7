"""Reciprocal rank fusion."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devmentor.pbml.context.fuse import Found, K, Piece, fuse, ranked


def piece(number: int) -> Piece:
    return Piece("d", 1, number, "document", None, "", f"text {number}")


def ranking(source: str, numbers: list[int]) -> list[Found]:
    return [Found(piece(number), source, 100.0 - rank) for rank, number in enumerate(numbers)]


def test_the_formula():
    hits = fuse([ranking("index", [1, 2]), ranking("full_text", [2, 3])])
    assert [hit.piece.chunk for hit in hits] == [2, 1, 3]
    assert [hit.score for hit in hits] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])
    assert hits[0].scores == {"index": 99.0, "full_text": 100.0}
    assert [hit.source for hit in hits] == ["index", "index", "full_text"]


NUMBERS = st.lists(st.integers(0, 12), max_size=15)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_nothing_is_lost_or_doubled_and_the_order_of_rankings_does_not_matter(left, right):
    rankings = [ranking("index", left), ranking("full_text", right)]
    hits = fuse(rankings)
    numbers = [hit.piece.chunk for hit in hits]
    assert sorted(numbers) == sorted({*left, *right})
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [(h.piece, pytest.approx(h.score)) for h in fuse(rankings[::-1])] == [(h.piece, h.score) for h in hits]


@settings(deadline=None)
@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(0, 7))
def test_a_better_rank_never_lowers_a_score(left, right, number):
    def score(of):
        return {hit.piece.chunk: hit.score for hit in fuse([ranking("index", of), ranking("full_text", right)])}[number]

    better = [number, *(other for other in left if other != number)]
    assert score(better) >= score(left)


@settings(deadline=None)
@given(NUMBERS)
def test_one_ranking_keeps_its_order(numbers):
    found = ranking("index", list(dict.fromkeys(numbers)))
    assert [hit.piece for hit in fuse([found])] == [f.piece for f in found]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.1, 0.5])), unique_by=lambda pair: pair[0]))
def test_the_same_question_has_the_same_answer(pairs):
    found = [Found(piece(number), "index", score) for number, score in pairs]
    assert ranked(found) == ranked(found[::-1])


def test_at_most_one_rank_is_counted_in_a_ranking():
    assert fuse([ranking("index", [1, 1, 1])])[0].score == 1 / (K + 1)
