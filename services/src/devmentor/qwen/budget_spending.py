"""What a request costs: the estimate before the engine is asked, and what it used, whole, streamed or broken off."""

import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devmentor.common.errors import ApiError
from devmentor.qwen.budgets import Reservation
from devmentor.qwen.engine_errors import EngineError
from devmentor.qwen.engine_stream import EngineStream
from devmentor.qwen.requests import text_of

_BYTES_PER_TOKEN = 4
_PER_MESSAGE = 4  # what a chat template puts around a message


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens that a request is expected to use."""

    prompt: int
    answer: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.answer


def _tokens(text: str) -> int:
    """As OpenAI estimates it: four bytes of English to a token (help.openai.com, "What are tokens"). The engine's count
    replaces it afterwards."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def chat_estimate(messages: Sequence[Mapping[str, Any]], answer_tokens: int, body: Mapping[str, Any]) -> Estimate:
    """Of the messages that the engine gets, context included; `answer_tokens` of each of the answers asked for."""
    prompt = sum(_tokens(text_of(message.get("content"))) + _PER_MESSAGE for message in messages)
    answers = body.get("n")
    return Estimate(prompt, answer_tokens * (answers if isinstance(answers, int) and answers > 0 else 1))


def embedding_estimate(given: Any) -> Estimate:
    """Of an `input`: a text, tokens, or a list of either."""
    if isinstance(given, str):
        return Estimate(_tokens(given))
    if isinstance(given, list):
        return Estimate(sum(embedding_estimate(part).prompt if isinstance(part, str | list) else 1 for part in given))
    return Estimate(1)


async def whole(reservation: Reservation, call: Awaitable[bytes]) -> bytes:
    """`Engine.complete`, settled. What a client that left had the engine do nobody knows: the estimate stands."""
    try:
        payload = await call
    except (ApiError, EngineError):
        reservation.settle(0)  # refused, never begun, or nothing came of it
        raise
    except BaseException:
        reservation.keep()
        raise
    if reservation.counts:
        used = _usage(payload)
        reservation.keep() if used is None else reservation.settle(used)
    return payload


async def streamed(reservation: Reservation, call: Awaitable[EngineStream], estimate: Estimate) -> EngineStream:
    """`Engine.stream`, settled when the stream is closed, whole or not."""
    try:
        stream = await call
    except (ApiError, EngineError):
        reservation.settle(0)
        raise
    except BaseException:
        reservation.keep()
        raise
    if reservation.counts:
        stream.on_close = lambda: reservation.settle(stream_tokens(stream.payloads, estimate))
    return stream


def stream_tokens(payloads: Sequence[bytes], estimate: Estimate) -> int:
    """Tokens of a stream so far: the engine's own count where it came, else of the prompt the estimate and of the
    answer a token for each chunk, or for every four bytes where the engine puts more than one into a chunk."""
    for payload in reversed(payloads[-2:]):
        used = _usage(payload)
        if used is not None:
            return used
    text = sum(_delta_bytes(payload) for payload in payloads)
    return estimate.prompt + max(len(payloads), -(-text // _BYTES_PER_TOKEN))


def _usage(payload: bytes) -> int | None:
    try:
        return int(json.loads(payload)["usage"]["total_tokens"])
    except (ValueError, LookupError, TypeError):
        return None


def _delta_bytes(payload: bytes) -> int:
    try:
        choices = json.loads(payload).get("choices") or ()
        deltas = [choice.get("delta") or {"text": choice.get("text")} for choice in choices]
        values = [value for delta in deltas for name, value in delta.items() if name != "role" and value is not None]
    except (ValueError, AttributeError):
        return len(payload)
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
    return sum(len(text.encode("utf-8", "replace")) for text in texts)
