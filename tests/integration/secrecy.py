"""Finds secrets in a command's output as they would be shown there: whole, or line by line in a diff."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Shorter values and lines are words that occur by themselves.
SHORTEST_VALUE = 12
SHORTEST_LINE = 20


def shown(secrets: Mapping[str, Any], output: str) -> list[str]:
    """Names of the secrets of which a value, or a line of a value of several lines, is in the output."""
    return [name for name, value in secrets.items() if any(piece in output for piece in pieces(value))]


def pieces(value: Any) -> list[str]:
    """What must not be shown of a variable: its strings, those of several lines by the line, since a diff indents them.

    Certificates are public, and so are the lines that begin and end a key.
    """
    if isinstance(value, Mapping):
        return [piece for entry in value.values() for piece in pieces(entry)]
    if isinstance(value, list | tuple):
        return [piece for entry in value for piece in pieces(entry)]
    if not isinstance(value, str):
        return []
    text = value.strip()
    if "\n" not in text:
        return [text] if len(text) >= SHORTEST_VALUE else []
    found, public = [], False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("-----"):
            public = line == "-----BEGIN CERTIFICATE-----"
        elif len(line) >= SHORTEST_LINE and not public:
            found.append(line)
    return found
