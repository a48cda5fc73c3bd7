"""What is served: hits and the chunks beside them become passages that fit a budget. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from devmentor.pbml.context.fuse import Hit, Key, Piece
from devmentor.pbml.tokens import TokenCounter

T = TypeVar("T")

SHORTEST_CUT = 16
"""Tokens below which the beginning of a text is not worth its place."""

_NEIGHBOUR = 0.5
"""What a neighbour is worth of its hit. With k = 60 the neighbour of what two rankings agree on comes about where
the best of a single ranking does."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Chunks of one version that follow each other, as one text. `hit` is the best of them."""

    hit: Hit
    first: Piece
    last: Piece
    text: str
    tokens: int
    truncated: bool = False

    def body(self) -> dict[str, Any]:
        """As the answer has it."""
        best = self.hit.piece
        return {
            "text": self.text,
            "score": round(self.hit.score, 6),
            "scores": {source: round(score, 6) for source, score in self.hit.scores.items()},
            "document_id": best.document_id,
            "version": best.version,
            "chunk": best.chunk,
            "first_chunk": self.first.chunk,
            "last_chunk": self.last.chunk,
            "start": self.first.start,
            "end": self.last.end,
            "source": self.hit.source,
            "kind": best.kind,
            "title": best.title,
            "section": best.section,
            "tokens": self.tokens,
            "truncated": self.truncated,
        }


def distinct(hits: Iterable[Hit]) -> list[Hit]:
    """The same text once, from where it came first."""
    seen: set[str] = set()
    kept: list[Hit] = []
    for hit in hits:
        text = shown(hit.piece.text)
        if text and text not in seen:
            seen.add(text)
            kept.append(hit)
    return kept


def beside(hits: Sequence[Hit]) -> list[Key]:
    """The chunks before and after each hit that are not hits themselves, best hit first."""
    have = {hit.piece.key for hit in hits}
    keys = (
        (hit.piece.document_id, hit.piece.version, number)
        for hit in hits
        for number in (hit.piece.chunk + 1, hit.piece.chunk - 1)
        if number >= 0
    )
    return [key for key in dict.fromkeys(keys) if key not in have]


def fit(hits: Sequence[Hit], neighbours: Sequence[Piece], budget: int, counter: TokenCounter) -> list[Passage]:
    """Passages of at most `budget` tokens together, best first.

    A chunk that does not fit is passed over for a shorter one, but the best of all is cut rather than left out. A
    neighbour is considered at half its hit's score, and only beside a chunk that was taken.
    """
    best_first = distinct(hits)
    if not best_first or budget <= 0:
        return []
    first = best_first[0]
    if counter.count(shown(first.piece.text)) > budget:
        return _cut(first, budget, counter)
    chosen: dict[Key, Hit] = {}
    texts: set[str] = set()
    spent = 0
    for hit in _considered(best_first, neighbours):
        text = shown(hit.piece.text)
        if not text or text in texts or (not hit.scores and not _touches(hit.piece, chosen)):
            continue
        cost = counter.count(text)
        if spent + cost <= budget:
            chosen[hit.piece.key] = hit
            texts.add(text)
            spent += cost
    return _within(list(chosen.values()), budget, counter)


def _considered(hits: Sequence[Hit], neighbours: Sequence[Piece]) -> list[Hit]:
    """Hits and neighbours in the order of their worth."""
    best: dict[Key, float] = {}
    for hit in hits:
        for number in (hit.piece.chunk - 1, hit.piece.chunk + 1):
            key = (hit.piece.document_id, hit.piece.version, number)
            best[key] = max(best.get(key, 0.0), hit.score)
    have = {hit.piece.key for hit in hits}
    added = [Hit(p, best[p.key] * _NEIGHBOUR) for p in neighbours if p.key in best and p.key not in have]
    return sorted([*hits, *added], key=lambda hit: (-hit.score, not hit.scores, hit.piece.key))


def _touches(piece: Piece, chosen: dict[Key, Hit]) -> bool:
    """Whether a hit beside it was taken."""
    return any(
        key in chosen and bool(chosen[key].scores)
        for key in ((piece.document_id, piece.version, number) for number in (piece.chunk - 1, piece.chunk + 1))
    )


def _within(chosen: list[Hit], budget: int, counter: TokenCounter) -> list[Passage]:
    """The passages of the chosen. A tokenizer may make more tokens of two texts joined than of both apart: then what is
    worth least goes."""
    while chosen:
        passages = merge(chosen, counter)
        if sum(passage.tokens for passage in passages) <= budget:
            return passages
        chosen = chosen[:-1]
    return []


def merge(chosen: Iterable[Hit], counter: TokenCounter) -> list[Passage]:
    """Chunks that follow each other in one version become one passage; best first."""
    runs: list[list[Hit]] = []
    for hit in sorted(chosen, key=lambda hit: hit.piece.key):
        key = hit.piece.key
        if runs and runs[-1][-1].piece.key == (key[0], key[1], key[2] - 1):
            runs[-1].append(hit)
        else:
            runs.append([hit])
    passages = []
    for run in runs:
        text = shown(join([hit.piece for hit in run]))
        best = max(run, key=lambda hit: (bool(hit.scores), hit.score))
        passages.append(Passage(best, run[0].piece, run[-1].piece, text, counter.count(text)))
    return sorted(passages, key=lambda passage: (-passage.hit.score, passage.hit.piece.key))


def join(pieces: Sequence[Piece]) -> str:
    """The text of chunks that follow each other. Between chunks of the first chunker blanks were left out: a line's end
    or an empty line stands for them."""
    text = pieces[0].text
    for before, after in pairwise(pieces):
        text += "\n" * min(2, max(0, after.start - before.end)) + after.text
    return text


def shown(text: str) -> str:
    """Without the empty lines and blanks that a chunk has at its ends."""
    return text.strip("\n").rstrip()


def _cut(hit: Hit, budget: int, counter: TokenCounter) -> list[Passage]:
    if budget < SHORTEST_CUT:
        return []
    text = shown(counter.cut(shown(hit.piece.text), budget))
    tokens = counter.count(text)
    # What a cut costs is the counter's promise; without its end it may be another text to a tokenizer.
    return [Passage(hit, hit.piece, hit.piece, text, tokens, truncated=True)] if text and tokens <= budget else []


def take(items: Iterable[tuple[T, str]], budget: int, counter: TokenCounter) -> tuple[list[tuple[T, int]], int]:
    """Those items, in their order, whose texts fit, each with its tokens; and the tokens together."""
    kept: list[tuple[T, int]] = []
    spent = 0
    for item, text in items:
        cost = counter.count(text)
        if spent + cost <= budget:
            kept.append((item, cost))
            spent += cost
    return kept, spent
