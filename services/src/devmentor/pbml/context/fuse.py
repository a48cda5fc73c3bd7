"""Several rankings of the same chunks become one. Pure functions.

Reciprocal rank fusion (Cormack, Clarke, Buettcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods, SIGIR 2009): score(d) = sum over rankings of 1 / (k + rank(d)), rank from 1, k = 60. It needs no scale
that a cosine and the weight of words would share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

K = 60

Key = tuple[str, int, int]
"""document id, version, chunk"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk and where it stands: `start` and `end` are characters of the normalised text of its version."""

    document_id: str
    version: int
    chunk: int
    kind: str
    title: str | None
    section: str
    text: str
    start: int = 0
    end: int = 0

    @property
    def key(self) -> Key:
        return self.document_id, self.version, self.chunk


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk in one ranking, with the score that its source gave it."""

    piece: Piece
    source: str
    score: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk with its fused score, and each source's own."""

    piece: Piece
    score: float
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The source in whose ranking it was found first, rankings in the order in which they were fused."""
        return next(iter(self.scores), "neighbour")


def ranked(found: Iterable[Found]) -> list[Found]:
    """Best first; equal scores in the order of documents, so that the same question has the same answer."""
    return sorted(found, key=lambda f: (-f.score, f.piece.key))


def fuse(rankings: Sequence[Sequence[Found]], k: int = K) -> list[Hit]:
    """One ranking, best first. A chunk counts once in each ranking, where it comes first."""
    pieces: dict[Key, Piece] = {}
    totals: dict[Key, float] = {}
    scores: dict[Key, dict[str, float]] = {}
    for ranking in rankings:
        counted: set[Key] = set()
        for found in ranking:
            key = found.piece.key
            if key in counted:
                continue
            counted.add(key)
            pieces.setdefault(key, found.piece)
            totals[key] = totals.get(key, 0.0) + 1 / (k + len(counted))
            scores.setdefault(key, {}).setdefault(found.source, found.score)
    hits = [Hit(piece, totals[key], scores[key]) for key, piece in pieces.items()]
    return sorted(hits, key=lambda hit: (-hit.score, hit.piece.key))
