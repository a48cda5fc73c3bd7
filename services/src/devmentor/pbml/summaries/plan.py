"""What there is to do for a conversation: the next summary that is missing, made again or to be folded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from devmentor.pbml.db import Connection
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import summaries
from devmentor.pbml.store.folds import Fold
from devmentor.pbml.store.summaries import Part, Range
from devmentor.pbml.tokens import TokenCounter

_CHARS_PER_TOKEN = 8
"""More of a text than this many characters a token is not read: it would not fit anyway."""


@dataclass(frozen=True, slots=True)
class Work:
    """A summary to be made, of these parts. Where none of them has a text, nothing is left to be said."""

    where: Range
    sources: list[Part]

    @property
    def empty(self) -> bool:
        """Whether no model has to be asked."""
        return not any(part.text for part in self.sources)


async def next_work(c: Connection, fold: Fold, s: Settings, counter: TokenCounter) -> Work | None:
    """First what was withdrawn, from below: what is above is made of it. Then older turns, then full levels."""
    chars = s.summary_input_tokens * _CHARS_PER_TOKEN
    where = await summaries.stale(c, fold)
    if where is not None:
        return Work(where, await summaries.parts(c, fold, where, chars))
    recent = await summaries.recent_from(c, fold, s.summary_keep_turns)
    if recent is not None and recent > fold.folded_seq + 1:
        older = await summaries.turns(c, fold, fold.folded_seq + 1, recent, s.summary_turns, chars)
        chosen = enough(older, s.summary_input_tokens, s.summary_turns, counter)
        if chosen:
            return Work(Range(0, chosen[0].first_seq, chosen[-1].last_seq), chosen)
    level = await summaries.full_level(c, fold, 2 * s.summary_fanout)
    if level is not None:
        where = await summaries.oldest(c, fold, level, s.summary_fanout)
        return Work(where, await summaries.parts(c, fold, where, chars))
    return None


def enough(older: Sequence[Part], tokens: int, most: int, counter: TokenCounter) -> list[Part]:
    """The oldest turns that fill a summary: as many as have `tokens` together, one at least and `most` at most.

    None where they do not fill one yet: a summary of little is made again too soon to be worth it.
    """
    spent = 0
    for number, part in enumerate(older):
        spent += counter.count(part.text)
        if spent > tokens:
            return list(older[: max(1, number)])
    return list(older) if len(older) >= most else []


def fitted(parts: Sequence[Part], tokens: int, counter: TokenCounter) -> list[Part]:
    """Parts with texts of `tokens` together at most: where they have more, the long ones lose their ends.

    The bound of each is the largest with which all fit, so that one long text does not push the short ones out.
    """
    costs = [counter.count(part.text) for part in parts]
    if sum(costs) <= tokens:
        return list(parts)
    left, bound = tokens, 0
    for number, cost in enumerate(sorted(costs)):
        bound = left // (len(costs) - number)
        if cost > bound:
            break
        left -= cost
    return [
        part if cost <= bound else replace(part, text=counter.cut(part.text, bound))
        for part, cost in zip(parts, costs, strict=True)
    ]
