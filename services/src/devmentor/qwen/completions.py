"""Chat completions as objects: put together from a stream's chunks, and taken apart into chunks again.

An answer is cached once, whole, and served either way, whatever the first client asked for.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from devmentor.qwen import sse

PIECE = 48  # characters of a replayed chunk: a few tokens, as engines send them


NO_MODEL = "No language model is available at the moment, so this is not an answer but what the knowledge base says:"


class BrokenStreamError(Exception):
    """The chunks do not make a whole answer."""


def assemble(payloads: Iterable[bytes]) -> dict[str, Any]:
    """The completion that a stream's data payloads (JSON chunks, no [DONE]) add up to.

    Raises BrokenStreamError where a choice has no end or nothing came.
    """

    def add(choice: dict[str, Any], part: dict[str, Any]) -> None:
        _merge_message(choice["message"], part.get("delta") or {})
        if part.get("logprobs"):
            _merge_logprobs(choice.setdefault("logprobs", {}), part["logprobs"])

    return added_up(payloads, "chat.completion", lambda: {"message": {"role": "assistant", "content": None}}, add)


def added_up(
    payloads: Iterable[bytes],
    kind: str,
    begin: Callable[[], dict[str, Any]],
    add: Callable[[dict[str, Any], dict[str, Any]], None],
) -> dict[str, Any]:
    """The object `kind` of a stream's payloads: what a choice begins with, and how a part of it is added.

    Raises BrokenStreamError where a choice has no end or nothing came.
    """
    head: dict[str, Any] = {}
    usage: Any = None
    choices: dict[int, dict[str, Any]] = {}
    for raw in payloads:
        try:
            chunk = json.loads(raw)
        except ValueError as error:
            raise BrokenStreamError(f"a chunk is not JSON: {error}") from error
        head = head or {name: chunk[name] for name in ("id", "created", "model", "system_fingerprint") if name in chunk}
        usage = chunk.get("usage") or usage
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            choice = choices.setdefault(index, {"index": index, **begin(), "finish_reason": None})
            add(choice, part)
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
    if not choices or any(choice["finish_reason"] is None for choice in choices.values()):
        raise BrokenStreamError("the stream ended before the answer did")
    completion = {**head, "object": kind, "choices": [choices[index] for index in sorted(choices)]}
    if usage:
        completion["usage"] = usage
    return completion


def _merge_message(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            continue
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for part in value:
                _merge_call(calls, part)
        elif name == "role" or not isinstance(value, str):
            message[name] = value
        else:
            message[name] = (message.get(name) or "") + value


def _merge_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    index = part.get("index", len(calls))
    while len(calls) <= index:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    call["type"] = part.get("type") or call["type"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _merge_logprobs(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name, values in part.items():
        if isinstance(values, list):
            whole.setdefault(name, []).extend(values)


def replay(completion: dict[str, Any], *, include_usage: bool) -> Iterator[bytes]:
    """The events of a stream that says what `completion` says, [DONE] included."""
    shared = {
        name: value for name, value in completion.items() if name not in ("choices", "usage", "object", "timings")
    }
    shared["object"] = "chat.completion.chunk"

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> bytes:
        return sse.data(
            {**shared, "choices": [{"index": index, "delta": delta, "finish_reason": None, **more}]}
            | ({"usage": None} if include_usage else {})
        )

    for choice in completion["choices"]:
        index, message = choice.get("index", 0), choice["message"]
        yield chunk(index, {"role": message.get("role", "assistant"), "content": ""})
        # Log probabilities belong to tokens; what tokens the pieces are made of is not known any more.
        logprobs = {"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}
        for name, value in message.items():
            if name in ("role", "tool_calls") or not value:
                continue
            if not isinstance(value, str):
                yield chunk(index, {name: value})
            elif name == "content" and logprobs:
                yield chunk(index, {name: value}, **logprobs)
            else:
                for start in range(0, len(value), PIECE):
                    yield chunk(index, {name: value[start : start + PIECE]})
        for number, call in enumerate(message.get("tool_calls") or ()):
            yield chunk(index, {"tool_calls": [{"index": number, **call}]})
        yield chunk(index, {}, finish_reason=choice.get("finish_reason") or "stop")
    if include_usage:
        yield sse.data({**shared, "choices": [], "usage": completion.get("usage")})
    yield sse.DONE


def said_so_far(payloads: Iterable[bytes]) -> str | None:
    """The text of an answer that broke off; None where it is more than the words of one choice, or has its end."""
    words = []
    for raw in payloads:
        for choice in json.loads(raw).get("choices") or ():
            delta = {name: value for name, value in (choice.get("delta") or {}).items() if value is not None}
            if choice.get("index", 0) or choice.get("finish_reason") or not delta.keys() <= {"role", "content"}:
                return None
            words.append(delta.get("content") or "")
    return "".join(words)


def answer_text(completion: dict[str, Any]) -> str:
    """The words of the first choice, "" where it only calls tools."""
    message = completion["choices"][0]["message"]
    content = message.get("content")
    return content if isinstance(content, str) else ""


def degraded(model: str, excerpts: Iterable[str]) -> dict[str, Any]:
    """A completion of our own: no model answered, this is what was found. It says so itself."""
    return {
        "id": f"chatcmpl-degraded-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "\n\n".join([NO_MODEL, *excerpts])},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
