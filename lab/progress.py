"""How the library tells a person what takes time, without printing itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    def say(self, message: str) -> None:
        """Something worth a line."""

    def step(self, what: str) -> AbstractContextManager[object]:
        """A stretch of work that may take a while."""


class Silent:
    """For callers that are not a terminal."""

    def say(self, message: str) -> None:
        pass

    def step(self, what: str) -> AbstractContextManager[object]:
        return nullcontext()
