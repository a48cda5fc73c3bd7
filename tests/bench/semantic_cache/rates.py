"""Rates with their confidence intervals, from judged pairs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from devmentor.qwen.semantic import may_share
from tests.bench.semantic_cache.pairs import Pair

Z_95 = 1.959964  # the standard normal's 97.5th percentile


def wilson(hits: int, of: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a proportion (E. B. Wilson, Probable inference, the law of succession, and statistical
    inference, JASA 22, 1927): unlike the normal approximation it is right for few hits and for none."""
    if of <= 0:
        return 0.0, 1.0
    rate, spread = hits / of, z * z / of
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / of + spread / (4 * of))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair, the cosine of its embeddings, and whether the rules of `semantic.marks` let it share an answer."""

    pair: Pair
    score: float
    shareable: bool


@dataclass(frozen=True, slots=True)
class Rate:
    """Hits among pairs of one kind."""

    hits: int
    of: int

    @property
    def text(self) -> str:
        low, high = wilson(self.hits, self.of)
        return f"{self.hits / max(1, self.of):.1%} ({low:.1%} to {high:.1%})"


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


def judge(pair: Pair, one: Sequence[float], other: Sequence[float]) -> Judged:
    return Judged(pair, cosine(one, other), may_share(pair.one, pair.other))


def rate(judged: Sequence[Judged], threshold: float, rules: Collection[str], *, marks: bool) -> Rate:
    """How many of the pairs of these rules would be served: nearer than the threshold and, with `marks`, allowed by
    them."""
    mine = [each for each in judged if each.pair.rule in rules]
    return Rate(sum(each.score >= threshold and (each.shareable or not marks) for each in mine), len(mine))
