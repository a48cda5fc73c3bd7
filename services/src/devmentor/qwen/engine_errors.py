"""What can go wrong with an engine, and what its error bodies say."""

import json
from typing import Any

import aiohttp


class EngineError(Exception):
    """The engine gave no answer; `kind` is a short word for metrics and logs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StreamBrokenError(EngineError):
    """A stream ended before its answer did."""


def as_engine_error(error: Exception) -> EngineError:
    """The error a client library raised, as ours."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, TimeoutError):
        return EngineError("timeout", f"no answer in time ({type(error).__name__})")
    if isinstance(error, aiohttp.ClientConnectorError):
        return EngineError("unreachable", str(error))
    return EngineError("connection", f"{type(error).__name__}: {error}")


# vLLM's: given up (its engine stops, its request was dropped), and failed inside the engine. What came is no answer.
_NO_END = frozenset({"abort", "error"})


def checked(raw: bytes) -> dict[str, Any]:
    """A whole answer or a chunk of one, as JSON. Raises EngineError where it is none: not an object of that form, an
    error, or an answer that the engine gave up."""
    try:
        body: Any = json.loads(raw)
    except ValueError:
        body = None
    choices = (body.get("choices") or []) if isinstance(body, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise EngineError("protocol", f"the engine's answer is no completion: {raw[:200].decode('utf-8', 'replace')}")
    if body.get("error") or body.get("object") == "error":
        raise EngineError("reported_error", engine_message(raw)[0] or "the engine reported an error without a reason")
    for choice in choices:
        if choice.get("finish_reason") in _NO_END:
            raise EngineError("given_up", f"the engine gave the answer up (finish_reason: {choice['finish_reason']})")
    return body  # type: ignore[no-any-return]  # a dict, or choices were none


def engine_message(payload: bytes) -> tuple[str, str | None]:
    """Message and code of an engine's error body, in OpenAI's form or vLLM's older flat one."""
    try:
        body: Any = json.loads(payload)
    except ValueError:
        return payload[:200].decode("utf-8", "replace"), None
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        code = error.get("type") if isinstance(error.get("code"), int) else error.get("code")
        return str(error.get("message", ""))[:500], code if isinstance(code, str) else None
    return str(error)[:500], None
