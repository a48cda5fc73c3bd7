"""The two forms that a generated answer has: a chat completion, and the legacy text completion."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from devmentor.qwen import completions, legacy


class _Replay(Protocol):
    def __call__(self, completion: dict[str, Any], *, include_usage: bool) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Form:
    """What differs between them. `with_messages` puts messages (with context) into a request's body."""

    endpoint: str
    path: str
    with_messages: Callable[[dict[str, Any], list[dict[str, Any]]], dict[str, Any]]
    assemble: Callable[[Iterable[bytes]], dict[str, Any]]
    replay: _Replay
    answer_text: Callable[[dict[str, Any]], str]
    degraded: Callable[[str, Iterable[str]], dict[str, Any]]


def _as_chat(body: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {**body, "messages": messages}


def _as_prompt(body: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Excerpts and turns as text before the prompt, which is the last message; without any the body is as it came."""
    if len(messages) < 2:
        return body
    *before, prompt = messages
    told = [m["content"] if m["role"] == "system" else f"{m['role']}: {m['content']}" for m in before]
    return {**body, "prompt": "\n\n".join([*told, prompt["content"]])}


CHAT = Form(
    "chat",
    "/v1/chat/completions",
    _as_chat,
    completions.assemble,
    completions.replay,
    completions.answer_text,
    completions.degraded,
)
LEGACY = Form(
    "completions", "/v1/completions", _as_prompt, legacy.assemble, legacy.replay, legacy.answer_text, legacy.degraded
)
