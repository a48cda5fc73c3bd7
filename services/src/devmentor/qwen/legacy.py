"""Legacy text completions (POST /v1/completions) as objects, as `completions` has them for chats."""

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from devmentor.qwen import sse
from devmentor.qwen.completions import NO_MODEL, PIECE, added_up


def assemble(payloads: Iterable[bytes]) -> dict[str, Any]:
    """The completion that a stream's data payloads add up to. Raises BrokenStreamError where a choice has no end."""

    def add(choice: dict[str, Any], part: dict[str, Any]) -> None:
        choice["text"] += part.get("text") or ""
        for name, values in (part.get("logprobs") or {}).items():
            choice["logprobs"] = choice["logprobs"] or {}
            choice["logprobs"].setdefault(name, []).extend(values or ())

    return added_up(payloads, "text_completion", lambda: {"text": "", "logprobs": None}, add)


def replay(completion: dict[str, Any], *, include_usage: bool) -> Iterator[bytes]:
    """The events of a stream that says what `completion` says, [DONE] included."""
    shared = {name: value for name, value in completion.items() if name not in ("choices", "usage", "timings")}
    for choice in completion["choices"]:
        text, logprobs = choice.get("text") or "", choice.get("logprobs")
        # Log probabilities belong to tokens; what tokens pieces would be made of is not known any more.
        size = len(text) if logprobs else PIECE
        pieces = [text[start : start + size] for start in range(0, len(text), size or 1)]
        for number, piece in enumerate(pieces or [""], start=1):
            last = number >= len(pieces)
            part = {
                "index": choice.get("index", 0),
                "text": piece,
                "logprobs": logprobs,
                "finish_reason": (choice.get("finish_reason") or "stop") if last else None,
            }
            yield sse.data({**shared, "choices": [part]} | ({"usage": None} if include_usage else {}))
    if include_usage:
        yield sse.data({**shared, "choices": [], "usage": completion.get("usage")})
    yield sse.DONE


def answer_text(completion: dict[str, Any]) -> str:
    """The words of the first choice."""
    text = completion["choices"][0].get("text")
    return text if isinstance(text, str) else ""


def degraded(model: str, excerpts: Iterable[str]) -> dict[str, Any]:
    """A completion of our own: no model answered, this is what was found. It says so itself."""
    return {
        "id": f"cmpl-degraded-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": 0, "text": "\n\n".join([NO_MODEL, *excerpts]), "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
