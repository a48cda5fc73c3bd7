"""What the constant load asks, the same for the same run and number."""

from __future__ import annotations

from typing import Any

from tests.chaos.qwen.questions import TOPICS, Ask
from tests.chaos.qwen.seen import FETCH, INGEST, STREAM, WHOLE

CHAT_LIMIT_S, PBML_LIMIT_S = 60.0, 15.0
REPEATED_EVERY, REPEATED = 5, 3
LONG_EVERY, LONG_TOKENS = 4, 400
BUDGET = 2000
CONTEXT_EVERY = 4
"""One chat in so many brings PBML's context."""

NO_CONTEXT = {"X-DevMentor-Context": "none"}
SOME_CONTEXT = {"X-DevMentor-Context-Tokens": "500"}
"""Of what was ingested meanwhile half of the model's length would fit, 8000 tokens: such chats took 6 to 25 s while a
playbook ran on the same two cores, and those after them waited."""


def document_id(run: str, number: int) -> str:
    return f"{run}-{number}"


def chat(run: str, number: int) -> Ask:
    """A new question, every fifth time one that was asked before."""
    headers = SOME_CONTEXT if number % CONTEXT_EVERY == 0 else NO_CONTEXT
    return Ask(WHOLE, _question(run, "chat", number), headers, CHAT_LIMIT_S)


def stream(run: str, number: int) -> Ask:
    """A new question answered in a stream, every fourth a long one: those are what a drain waits for."""
    body = _question(run, "stream", number) | {"stream": True}
    if number % LONG_EVERY == LONG_EVERY - 1:
        body |= {"max_tokens": LONG_TOKENS, "ignore_eos": True}
    return Ask(STREAM, body, NO_CONTEXT, CHAT_LIMIT_S)


def ingest(run: str, number: int) -> Ask:
    """A document of its own, under a key by which a second try of the gateway's is the same write."""
    name = document_id(run, number)
    body = {"id": name, "title": name, "text": f"Document {name} is about the {_topic(number)} of this platform."}
    return Ask(INGEST, body, {"Idempotency-Key": name}, PBML_LIMIT_S, "/v1/documents")


def fetch(run: str, number: int) -> Ask:
    body = {"query": f"What of the {_topic(number)} of this platform ({run}-{number})?", "token_budget": BUDGET}
    return Ask(FETCH, body, {}, PBML_LIMIT_S, "/v1/context")


def _topic(number: int) -> str:
    return TOPICS[number % len(TOPICS)]


def _question(run: str, kind: str, number: int) -> dict[str, Any]:
    name = f"again-{number // REPEATED_EVERY % REPEATED}" if number % REPEATED_EVERY == 0 else str(number)
    text = f"Question {run}-{kind}-{name}: what of the {_topic(number)} of this platform?"
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
