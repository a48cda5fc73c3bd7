"""The semantic cache's bench: its interval, its pairs, its rates."""

import pytest

from tests.bench.semantic_cache import rates
from tests.bench.semantic_cache.pairs import HELD_OUT, NEAR_MISSES, PARAPHRASES, Pair, pairs, sample


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998), table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(hits: int, of: int, low: float, high: float) -> None:
    assert rates.wilson(hits, of) == pytest.approx((low, high), abs=5e-5)


def test_every_rule_makes_a_pair_of_two_questions_for_every_name() -> None:
    names = ["bash", "dash", "vim", "zsh"]
    made = list(pairs(names, ["bash", "vim"]))
    assert len(made) == 2 * (len(NEAR_MISSES) + len(HELD_OUT) + len(PARAPHRASES))
    assert all(pair.one != pair.other for pair in made)
    other_name = Pair("other name", "How do I install bash on Debian?", "How do I install dash on Debian?", same=False)
    assert other_name in made
    assert sample(names, 2) == sample(list(reversed(names)), 2)


def test_a_rate_counts_its_kind_above_the_threshold_and_as_the_marks_allow() -> None:
    near = Pair("number", "Port 80?", "Port 81?", same=False)
    same = Pair("what", "What is x?", "Tell me what x is.", same=True)
    judged = [rates.judge(near, [1.0, 0.0], [1.0, 0.1]), rates.judge(same, [1.0, 0.0], [1.0, 0.0])]
    assert rates.rate(judged, 0.95, NEAR_MISSES, marks=False) == rates.Rate(1, 1)
    assert rates.rate(judged, 0.95, NEAR_MISSES, marks=True) == rates.Rate(0, 1)
    assert rates.rate(judged, 0.999, NEAR_MISSES, marks=False) == rates.Rate(0, 1)
    assert rates.rate(judged, 0.95, PARAPHRASES, marks=True) == rates.Rate(1, 1)
    assert rates.rate(judged, 0.95, ["rule"], marks=True).of == 0
