"""What a client asks for: bodies and headers checked by hand, because this is on every request's way.

Only what QWEN itself acts on is checked; everything else is the engine's to judge and goes there untouched.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from devmentor.common import names
from devmentor.common.errors import ApiError
from devmentor.qwen.forms import CHAT, LEGACY, Form
from devmentor.qwen.purge import Scope, model_part

# How an answer is delivered, or who asked; nothing of this changes the answer.
_NOT_IN_KEY = frozenset({"stream", "stream_options", "user", "metadata", "store", "safety_identifier", "service_tier"})
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
# What PBML would refuse is refused here: it would only degrade the context, in silence.
_CONVERSATION = re.compile(names.CONVERSATION_ID)
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)
_WATERMARK = re.compile(names.WATERMARK)

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What the client's Cache-Control allows."""

    read: bool = True
    write: bool = True
    stale_s: int | None = None
    """Age in seconds up to which an answer may be an old one where the engine fails; 0: never, None: as it is set."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked chat request; `body` is as it came."""

    body: dict[str, Any]
    model: str
    messages: list[Message]
    stream: bool
    include_usage: bool
    answer_tokens: int | None
    conversation: str | None
    watermark: str | None
    wants_context: bool
    cache: CachePolicy
    context_tokens: int | None = None
    """Tokens that the client lets context take; None: as many as the settings do."""
    deadline_s: float | None = None
    form: Form = CHAT
    continues: bool = False
    """Whether another model may continue a stream of this one that breaks."""

    @property
    def question(self) -> str:
        """The text of the last user message: what context is searched for."""
        for message in reversed(self.messages):
            if message["role"] == "user":
                return text_of(message.get("content"))
        return ""

    @property
    def accepts_prose(self) -> bool:
        """Whether an answer in words of our own can stand in for the model's."""
        if self.form is LEGACY:
            return not self.body.get("suffix") and not self.body.get("echo")
        kind = (self.body.get("response_format") or {}).get("type", "text")
        return kind == "text" and self.body.get("tool_choice") in (None, "none", "auto")


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A checked embeddings request; `body` is as it came."""

    body: dict[str, Any]
    model: str
    cache: CachePolicy
    deadline_s: float | None = None


def _refuse(param: str, message: str) -> NoReturn:
    raise ApiError(400, "invalid_value", f"{param}: {message}", param=param)


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body as an object, or 400."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    return body


def text_of(content: Any) -> str:
    """The words of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def parse_chat(body: dict[str, Any], headers: Mapping[str, str]) -> ChatRequest:
    """Check a POST /v1/chat/completions. Raises ApiError (400) naming the parameter."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "a list with at least one message is expected")
    for number, message in enumerate(messages):
        _check_message(number, message)
    stream, options = _streaming(body)
    response_format = body.get("response_format")
    if response_format is not None and not isinstance(response_format, dict):
        _refuse("response_format", "an object is expected")
    bound = _bound(body, "max_completion_tokens", "max_tokens")
    return ChatRequest(
        body=body,
        model=_model(body),
        messages=messages,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        answer_tokens=bound,
        conversation=_conversation(body, headers),
        watermark=_watermark(headers),
        wants_context=headers.get("x-devmentor-context", "").lower() != "none",
        cache=cache_policy(headers),
        context_tokens=_context_tokens(headers),
        deadline_s=deadline_s(headers),
        continues=_continues(body, headers),
    )


def parse_completion(body: dict[str, Any], headers: Mapping[str, str]) -> ChatRequest:
    """Check a POST /v1/completions. Raises ApiError (400) naming the parameter.

    Context goes only into a single prompt of text, and only where a conversation is named.
    """
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        _refuse("prompt", "a string or a list, not empty, is expected")
    stream, options = _streaming(body)
    conversation = _conversation(body, headers)
    return ChatRequest(
        body=body,
        model=_model(body),
        messages=[{"role": "user", "content": prompt}] if isinstance(prompt, str) else [],
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        answer_tokens=_bound(body, "max_tokens"),
        conversation=conversation,
        watermark=_watermark(headers),
        wants_context=conversation is not None
        and isinstance(prompt, str)
        and headers.get("x-devmentor-context", "").lower() != "none",
        cache=cache_policy(headers),
        context_tokens=_context_tokens(headers),
        deadline_s=deadline_s(headers),
        form=LEGACY,
    )


def _streaming(body: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    stream, options = _boolean(body, "stream"), body.get("stream_options") or {}
    if not isinstance(options, dict):
        _refuse("stream_options", "an object is expected")
    if options and not stream:
        _refuse("stream_options", "only with stream: true")
    return stream, options


def _bound(body: dict[str, Any], *names_: str) -> int | None:
    bound = next((body[name] for name in names_ if name in body), None)
    if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool) or bound < 1):
        _refuse("max_tokens", "a positive integer is expected")
    return bound


def parse_embedding(body: dict[str, Any], headers: Mapping[str, str]) -> EmbeddingRequest:
    """Check a POST /v1/embeddings. Raises ApiError (400) naming the parameter."""
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        _refuse("input", "a string or a list, not empty, is expected")
    return EmbeddingRequest(body=body, model=_model(body), cache=cache_policy(headers), deadline_s=deadline_s(headers))


def _check_message(number: int, message: Any) -> None:
    where = f"messages.{number}"
    if not isinstance(message, dict):
        _refuse(where, "an object is expected")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(f"{where}.role", f"one of {', '.join(sorted(_ROLES))} is expected")
    content = message.get("content")
    if content is None:
        if role != "assistant":
            _refuse(f"{where}.content", "only an assistant's message may have none")
    elif not isinstance(content, str | list):
        _refuse(f"{where}.content", "a string or a list of parts is expected")


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        _refuse("model", "the name of a model is expected; GET /v1/models lists them")
    return model


def _boolean(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        _refuse(name, "true or false is expected")
    return bool(value)


def _conversation(body: dict[str, Any], headers: Mapping[str, str]) -> str | None:
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        _refuse("metadata", "an object is expected")
    given = headers.get("x-devmentor-conversation")
    where = "X-DevMentor-Conversation" if given else "metadata.conversation_id"
    name = given or (metadata or {}).get("conversation_id")
    if name is None:
        return None
    if not isinstance(name, str) or not _CONVERSATION.fullmatch(name):
        _refuse(where, f"a name like {names.CONVERSATION_ID} is expected")
    return name


def _continues(body: dict[str, Any], headers: Mapping[str, str]) -> bool:
    given = headers.get("x-devmentor-on-break")
    where = "X-DevMentor-On-Break" if given is not None else "metadata.on_break"
    wish = given if given is not None else (body.get("metadata") or {}).get("on_break", "error")
    if wish not in ("error", "continue"):
        _refuse(where, "error or continue is expected")
    # Of one choice of plain words another model can take the thread up; half a JSON document would be begun anew.
    plain = (body.get("response_format") or {}).get("type", "text") == "text"
    return wish == "continue" and body.get("n") in (None, 1) and plain


def _watermark(headers: Mapping[str, str]) -> str | None:
    mark = headers.get("x-devmentor-watermark")
    if mark is not None and not _WATERMARK.fullmatch(mark):
        _refuse("X-DevMentor-Watermark", f"what an ingest answered, {names.WATERMARK}, is expected")
    return mark


def _context_tokens(headers: Mapping[str, str]) -> int | None:
    given = headers.get("x-devmentor-context-tokens")
    if given is None:
        return None
    if not _WHOLE.fullmatch(given) or not int(given):
        _refuse(
            "X-DevMentor-Context-Tokens",
            "a positive whole number is expected; X-DevMentor-Context: none for no context",
        )
    return int(given)


def deadline_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the client gives the answer, a stream's first event; None where it does not say."""
    given = headers.get("x-devmentor-deadline-ms")
    if given is None:
        return None
    if not _WHOLE.fullmatch(given) or not int(given):
        _refuse("X-DevMentor-Deadline-Ms", "a positive whole number of milliseconds is expected")
    return int(given) / 1000


def cache_policy(headers: Mapping[str, str]) -> CachePolicy:
    """`no-store`: neither read nor write; `no-cache`: a new answer, which may be stored; `stale-if-error=SECONDS`
    (RFC 5861): no older one in its place. Raises ApiError (400) for seconds that are none."""
    directives = {part.strip().lower() for part in headers.get("cache-control", "").split(",")}
    if "no-store" in directives:
        return CachePolicy(read=False, write=False)
    stale_s = None
    for directive in directives:
        name, _, seconds = directive.partition("=")
        if name == "stale-if-error":
            if not _WHOLE.fullmatch(seconds):
                _refuse("Cache-Control", "stale-if-error=SECONDS is expected, 0 for never")
            stale_s = int(seconds)
    return CachePolicy(read="no-cache" not in directives, stale_s=stale_s)


def parse_purge(body: dict[str, Any]) -> tuple[Scope, str]:
    """Check a POST /v1/cache/purge: its scope and its reason. Raises ApiError (400)."""
    unknown = body.keys() - {"tenant", "model", "all", "reason"}
    if unknown:
        _refuse(min(unknown), "not known; tenant, model, all and reason are")
    for name in ("tenant", "model", "reason"):
        if name in body and (not isinstance(body[name], str) or not body[name]):
            _refuse(name, "a string, not empty, is expected")
    tenant, model = body.get("tenant"), body.get("model")
    if tenant is not None and not _TENANT.fullmatch(tenant):
        _refuse("tenant", f"a name like {_TENANT.pattern} is expected")
    if _boolean(body, "all") == (tenant is not None or model is not None):
        _refuse("all", "either a tenant, a model or both, or all: true")
    return Scope(tenant, model), body.get("reason", "")


def cache_key(endpoint: str, tenant: str, body: Mapping[str, Any], *scope: str | None) -> str:
    """One digest for everything that the answer depends on but the context's version, which the entry itself holds.

    Every parameter counts, also one that this code has never heard of, unless it is known not to change the answer.
    """
    relevant = {name: value for name, value in body.items() if name not in _NOT_IN_KEY}
    canonical = json.dumps([endpoint, tenant, scope, relevant], sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
    return f"{tenant}:{model_part(str(body.get('model')))}:{digest}"
