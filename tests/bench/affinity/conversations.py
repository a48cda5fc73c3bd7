"""Conversations whose prompts grow: what is asked, and what one turn showed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

WORDS = ["backup", "restore", "snapshot", "replica", "standby", "quorum", "epoch", "fence", "drain", "shard", "window"]

HEADER = "header"
"""The conversation is in `X-DevMentor-Conversation`, which the gateway hashes: it stays on one instance."""

BODY = "body"
"""It is in the body's metadata, which QWEN reads and the gateway does not: HAProxy deals such requests in turn."""

ARMS = (HEADER, BODY)


@dataclass(frozen=True)
class Turn:
    """One answer. `prompt`, `cached` and `evaluated` are the engine's own counts of tokens; None: it did not say."""

    arm: str
    conversation: str
    number: int
    instance: str = ""
    ttft_s: float | None = None
    total_s: float = 0.0
    prompt: int | None = None
    cached: int | None = None
    evaluated: int | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass
class Conversation:
    """One conversation: `next_question` before a turn, `answered` after it. No two seeds make the same questions."""

    arm: str
    name: str
    seed: str
    words: int
    messages: list[dict[str, str]] = field(default_factory=list)

    def next_question(self, number: int) -> list[dict[str, str]]:
        chance = random.Random(f"{self.seed}/{number}")
        text = " ".join(chance.choice(WORDS) for _ in range(self.words))
        self.messages.append({"role": "user", "content": f"{number}. {text}"})
        return self.messages

    def answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def request(self, model: str, max_tokens: int) -> tuple[dict[str, Any], dict[str, str]]:
        """Body and headers. Both arms ask QWEN for the same; only what the gateway sees differs.

        No context of PBML's and no cache: the prompt is the messages, and the engine answers every turn.
        """
        body: dict[str, Any] = {
            "model": model, "messages": self.messages, "max_tokens": max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        headers = {"X-DevMentor-Context": "none", "Cache-Control": "no-store"}
        if self.arm == HEADER:
            headers["X-DevMentor-Conversation"] = self.name
        else:
            body["metadata"] = {"conversation_id": self.name}
        return body, headers


def counts(usage: dict[str, Any], timings: dict[str, Any] | None) -> tuple[int | None, int | None, int | None]:
    """(prompt, cached, evaluated) tokens: OpenAI's usage, and llama.cpp's timings where they are there.

    `prompt_n` is what was evaluated; without it that is the difference.
    """
    prompt = usage.get("prompt_tokens")
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    evaluated = (timings or {}).get("prompt_n")
    if evaluated is None and prompt is not None and cached is not None:
        evaluated = prompt - cached
    return prompt, cached, evaluated
