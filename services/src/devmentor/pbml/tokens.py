"""How many tokens a text costs in the engine's prompt."""

import math
from typing import Protocol


class TokenCounter(Protocol):
    """Counts what a text costs. An implementation may be above the truth, never below it."""

    def count(self, text: str) -> int:
        """Tokens of `text`."""
        ...

    def cut(self, text: str, tokens: int) -> str:
        """The longest beginning of `text` that costs at most `tokens`."""
        ...


class ByteTokenCounter:
    """UTF-8 bytes divided by a ratio, rounded up.

    A byte-level BPE vocabulary (Qwen's, Llama 3's, GPT's) has a token for every byte and tokens only
    ever join bytes, so with a ratio of 1 the count is an upper bound for every such engine and text.
    English prose has about 4 bytes a token and digits 1: a higher ratio uses more of the budget and
    gives up the bound.
    """

    def __init__(self, bytes_per_token: float = 1.0) -> None:
        self._ratio = bytes_per_token

    def count(self, text: str) -> int:
        """ceil(bytes / ratio)."""
        return math.ceil(len(text.encode()) / self._ratio)

    def cut(self, text: str, tokens: int) -> str:
        """Cut on a character's boundary."""
        return text.encode()[: max(0, math.floor(tokens * self._ratio))].decode(errors="ignore")
