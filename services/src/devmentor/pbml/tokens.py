"""How many tokens a text costs in the engine's prompt."""

import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

_REMEMBERED = 8192
_REMEMBERED_CHARS = 8192


class TokenizerFileError(Exception):
    """The configured tokenizer cannot be used; the message says which file and why."""


class TokenCounter(Protocol):
    """Counts what a text costs. Safe for several threads."""

    name: str
    """What counts, for answers and /ready."""

    inline_chars: int
    """More characters than this are not to be counted on the event loop."""

    def count(self, text: str) -> int:
        """Tokens of `text`."""
        ...

    def cut(self, text: str, tokens: int) -> str:
        """A beginning of `text` that costs at most `tokens`, and about that where the text is longer."""
        ...


class ByteTokenCounter:
    """UTF-8 bytes divided by a ratio, rounded up.

    A byte-level BPE vocabulary (Qwen's, Llama 3's, GPT's) has a token for every byte and tokens only
    ever join bytes, so with a ratio of 1 the count is an upper bound for every such engine and text.
    English prose has about 4 bytes a token and digits 1: a higher ratio uses more of the budget and
    gives up the bound.
    """

    inline_chars = 16 * 1024 * 1024

    def __init__(self, bytes_per_token: float = 1.0) -> None:
        self._ratio = bytes_per_token
        self.name = f"bytes/{bytes_per_token:g}"

    def count(self, text: str) -> int:
        """ceil(bytes / ratio)."""
        return math.ceil(len(text.encode()) / self._ratio)

    def cut(self, text: str, tokens: int) -> str:
        """Cut on a character's boundary."""
        return text.encode()[: max(0, math.floor(tokens * self._ratio))].decode(errors="ignore")


class TokenizerCounter:
    """The model's own tokenizer, from the tokenizer.json that comes with its weights. Special tokens do not count: what
    a chat template puts around a text is the engine's side of the budget.

    The library counts some megabytes a second and lets other threads run meanwhile. A chunk is counted in many
    fetches, so the counts of short texts are remembered.
    """

    inline_chars = 4096

    def __init__(self, file: Path) -> None:
        try:
            data = file.read_bytes()
            self._tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exceptions
            raise TokenizerFileError(
                f"PBML_TOKENIZER_FILE: {file}: {error}; a model's tokenizer.json is expected, or no setting for a bound"
                " by bytes"
            ) from error
        # A file may ask for texts to be cut or filled up to the model's window: a count has neither.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = f"tokenizer {hashlib.sha256(data).hexdigest()[:12]}"
        self._remembered = lru_cache(_REMEMBERED)(self._tokens)

    def count(self, text: str) -> int:
        """Tokens of `text` by the model's vocabulary."""
        return self._remembered(text) if len(text) <= _REMEMBERED_CHARS else self._tokens(text)

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def cut(self, text: str, tokens: int) -> str:
        """Cut before the first token too many, on a character's boundary."""
        if tokens <= 0:
            return ""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(offsets) <= tokens:
            return text
        beginning, left = text[: offsets[tokens][0]], tokens
        # The beginning by itself may fall into other tokens, and more of them.
        while beginning and self.count(beginning) > tokens:
            left -= 1
            beginning = text[: offsets[left][0]] if left > 0 else ""
        return beginning


def counter(tokenizer_file: Path | None, bytes_per_token: float) -> TokenCounter:
    """The model's tokenizer where one is configured, else the bound by bytes. Raises TokenizerFileError."""
    return TokenizerCounter(tokenizer_file) if tokenizer_file is not None else ByteTokenCounter(bytes_per_token)
