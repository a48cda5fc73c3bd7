"""The semantic cache's decisions, without I/O: which requests, in which partition, and when two questions may share an
answer.

Nearness of embeddings alone is not enough: a model like all-MiniLM-L6-v2 puts "port 80" beside "port 443" and "enable"
beside "do not enable". So numbers, names of code and negations must be the same in both questions (`marks`).
"""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from devmentor.qwen.requests import ChatRequest, cache_key, text_of

_HEADER_CHARS = 300
# A word with a digit, an inner capital or punctuation of code, or all in capitals: a name, a number, a path.
_NAME = re.compile(r"(?=\S*\d)\S+|\S*[a-z][A-Z]\S*|\b[A-Z]{2,}\b|\S*(?:[_/\\=<>@#$]|\w[.:]\w)\S*")
_WORD = re.compile(r"\w+")
_EDGES = ".,;:!?\"'()[]{}"
_NEGATIONS = frozenset({"not", "no", "never", "without", "none", "nor", "cannot", "neither", "except"})
# Words that turn a question round and that embeddings hardly tell apart; too common ones (on, from, up) are left out.
_TURNING = frozenset({
    "enable", "disable", "start", "stop", "add", "remove", "before", "after", "first", "last", "min", "max",
    "minimum", "maximum", "increase", "decrease", "upload", "download", "encrypt", "decrypt", "without", "allow",
    "deny", "install", "uninstall", "push", "pull", "import", "export", "above", "below", "more", "less", "most",
    "least", "best", "worst", "open", "close", "lock", "unlock", "off", "down", "left", "right", "true", "false",
    "yes", "no", "input", "output",
    "all", "alone", "but", "each", "every", "everything", "except", "only",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that may be answered by meaning: within `partition`, everything but the question is the same."""

    partition: str
    question: str

    @property
    def tenant(self) -> str:
        return self.partition.split(":")[0]

    @property
    def model(self) -> str:
        """What stands for the model in keys and scopes."""
        return self.partition.split(":")[1]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is kept for a question; the generation as an entry's of the exact cache."""

    payload: bytes
    context: str
    generation: int


@dataclass(frozen=True, slots=True)
class Match:
    """A stored answer for a question that is near enough."""

    payload: bytes
    context: str
    question: str
    score: float

    @property
    def headers(self) -> dict[str, str]:
        """What the client is told of it; the question percent-encoded as UTF-8, its beginning."""
        return {
            "X-DevMentor-Semantic-Score": f"{self.score:.4f}",
            "X-DevMentor-Semantic-Question": quote(self.question[:_HEADER_CHARS], safe=" ,.?!'()"),
        }


def candidate(
    request: ChatRequest, tenant: str, version: str | None, *, mode: str, model: str, most_chars: int
) -> Candidate | None:
    """None where a request cannot be answered by meaning: its last message is no text of a user, or too long for the
    embedding model to see all of it, or nothing cached counts as fresh.

    The partition, a key as the exact cache's, holds tenant, context version, embedding model and the whole body but for
    that last text: model, system prompt, earlier messages, tools and every parameter.
    """
    last = request.messages[-1]
    content = last.get("content")
    if version is None or last["role"] != "user" or not _text_alone(content):
        return None
    question = text_of(content).strip()
    if not question or len(question) > most_chars:
        return None
    rest = [*request.messages[:-1], {**last, "content": ""}]
    body = {**request.body, "messages": rest}
    return Candidate(cache_key("semantic", tenant, body, mode, request.conversation, version, model), question)


def _text_alone(content: Any) -> bool:
    return isinstance(content, str) or (
        isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    )


def marks(question: str) -> frozenset[str]:
    """What two questions must have in common beside their meaning: numbers, names of code, negations, and words that
    turn a question round."""
    names = {word.strip(_EDGES).lower() for word in _NAME.findall(question)}
    words = set(re.findall(r"[a-z']+", question.lower()))
    negated = {"not"} if any(word in _NEGATIONS or word.endswith("n't") for word in words) else set()
    return frozenset(names | negated | (words & _TURNING))


def may_share(asked: str, stored: str) -> bool:
    """Whether two near questions may have one answer: the same marks, and not the same words turned round ("replace a
    by b"), which embeddings of whole sentences hardly see."""
    one, other = _WORD.findall(asked.lower()), _WORD.findall(stored.lower())
    return marks(asked) == marks(stored) and (one == other or sorted(one) != sorted(other))


def complete(completion: dict[str, Any]) -> bool:
    """Whether an answer is whole and of words: not cut off by a limit or a filter, and no call of a tool."""
    choices = completion.get("choices") or []
    return bool(choices) and all(
        choice.get("finish_reason") == "stop" and isinstance((choice.get("message") or {}).get("content"), str)
        for choice in choices
    )
