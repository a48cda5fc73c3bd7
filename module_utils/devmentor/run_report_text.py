"""What a run report may show of a text: one short piece of it, and nothing secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HIDDEN = "(hidden)"
LONGEST = 400
# Shorter values are words that occur by themselves.
SHORTEST_SECRET = 8
SHORTEST_LINE = 20

_SECRET_NAME = re.compile(r"^_*vault_|passw|passphrase|secret|token|api_?key|private_?key|credential", re.IGNORECASE)
# A file or a variable that is named, not a secret that is held.
_NOT_SECRET = re.compile(r"^[/~]|\{\{|^vault_[a-z0-9_]+$")
_GIVEN_AWAY = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), HIDDEN),
    (re.compile(r"(\w+://[^\s:/@]*:)[^\s@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)((?:passw(?:or)?d|secret|token|api[_-]?key)['\"]?\s*[=:]\s*)['\"]?[^\s'\",;]+"), rf"\1{HIDDEN}"),
)
# Where Ansible quotes the file that a message is about, its lines follow.
_SOURCE = re.compile(
    r"\s*(?:^|\n)(?:Origin:|<<< caused by >>>|The error appears to be in|The offending line).*", re.DOTALL
)


def clip(value: object, longest: int = LONGEST) -> str:
    """One line of at most `longest` characters; control characters become blanks."""
    text = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return text if len(text) <= longest else text[: longest - 3].rstrip() + "..."


def message(value: object) -> str:
    """An error's message without the lines of source that Ansible may quote below it."""
    return clip(_SOURCE.sub("", str(value))) if value else ""


def secrets_of(variables: Mapping[str, Any]) -> set[str]:
    """Values of variables that are secret by name (vault_*, *password*, *token*, ...), whole and by the line."""
    return {piece for value in _named_secret(variables) for piece in _pieces(value)}


def _named_secret(value: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _named_secret(entry, secret or bool(_SECRET_NAME.search(str(name))))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _named_secret(entry, secret)
    elif secret and isinstance(value, str):
        yield value


def _pieces(value: str) -> Iterator[str]:
    text = value.strip()
    if "\n" in text:
        yield from (line.strip() for line in text.splitlines() if len(line.strip()) >= SHORTEST_LINE)
    elif len(text) >= SHORTEST_SECRET and not _NOT_SECRET.search(text):
        yield text


class Redactor:
    """Takes out of texts the known secrets and what looks like one (keys, passwords in URLs, bearer tokens)."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: a secret may be a piece of another.
        ordered = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def text(self, text: str) -> str:
        for pattern, replacement in _GIVEN_AWAY:
            text = pattern.sub(replacement, text)
        return self._known.sub(HIDDEN, text) if self._known else text

    def all(self, value: Any) -> Any:
        """The same value with every string in it redacted, keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.all(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.all(entry) for entry in value]
        return value
