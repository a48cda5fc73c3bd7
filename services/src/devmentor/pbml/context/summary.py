"""Summaries of a conversation's older turns, as a fetch serves them. Pure functions."""

from collections.abc import Sequence
from typing import Any

from devmentor.pbml.context.passages import take
from devmentor.pbml.models import watermark
from devmentor.pbml.store.ledger import Turn
from devmentor.pbml.store.summaries import Summary
from devmentor.pbml.tokens import TokenCounter


def fit_summaries(
    found: Sequence[Summary], shown: Sequence[Turn], budget: int, counter: TokenCounter
) -> tuple[list[tuple[Summary, int]], int]:
    """Those that fit, with their tokens, and the tokens of all. They are taken in the order given, the widest and the
    newest first, and returned in the order of time, as turns are. What the shown turns say whole is left out.
    """
    since = shown[0].seq if shown else None
    older = (s for s in found if since is None or s.first_seq < since)
    taken, cost = take(((summary, summary.body) for summary in older), budget, counter)
    return sorted(taken, key=lambda one: one[0].first_seq), cost


def summary_body(conversation_id: str, summary: Summary, tokens: int) -> dict[str, Any]:
    """A summary among the passages."""
    return {
        "text": summary.body,
        "score": 1.0,
        "scores": {},
        "document_id": f"~summary/{conversation_id}/{summary.level}/{summary.first_seq}",
        "version": 1,
        "chunk": 0,
        "source": "summary",
        "kind": "summary",
        "title": None,
        "section": "",
        "tokens": tokens,
        "truncated": False,
        "summary": {
            "level": summary.level,
            "first_turn": watermark(summary.first_seq),
            "last_turn": watermark(summary.last_seq),
            "turns": summary.turns,
            "model": summary.model,
            "made_at": summary.made_at.isoformat(),
        },
    }
