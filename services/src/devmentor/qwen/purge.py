"""Which cached answers an operator has taken back.

A purge is a generation number for a scope: a tenant, a model, both, or everything. An entry holds the highest number
that was known where its question came in, and one with a lower number than a purge of its scope is gone, wherever it
still lies and whenever it was stored: an answer that was under way during the purge does not bring it back.
Numbers are microseconds of the purging host's clock, or one more than the highest known where that clock is behind.

A key is TENANT:MODEL:DIGEST, the model as a short digest because its name may hold anything.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_ANY = "*"


def model_part(model: str) -> str:
    """What stands for a model in a key."""
    return hashlib.blake2b(model.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Scope:
    """What is purged; None: whatever it is."""

    tenant: str | None = None
    model: str | None = None

    @property
    def text(self) -> str:
        """TENANT:MODEL as in keys, with * for any."""
        return f"{self.tenant or _ANY}:{_ANY if self.model is None else model_part(self.model)}"


@dataclass(slots=True)
class Purged:
    """What a purge found: entries dropped from L1 here and from L2, and the nodes by what they said ("" is well)."""

    generation: int
    l1: int
    l2: int = 0
    nodes: dict[str, str] = field(default_factory=dict)


def matches(scope: str, key: str) -> bool:
    """Whether a key is within a scope's text."""
    tenant, model = scope.split(":")
    of_tenant, of_model, _ = key.split(":", 2)
    return tenant in (_ANY, of_tenant) and model in (_ANY, of_model)


class Purges:
    """The purges that this instance knows of."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self.latest = 0

    @property
    def known(self) -> Mapping[str, int]:
        """Generations by the scopes' texts."""
        return self._known

    def next(self) -> int:
        """The number of a purge that is made now."""
        return max(time.time_ns() // 1000, self.latest + 1)

    def learn(self, told: Mapping[str, int]) -> list[str]:
        """Take over what another one knows; the scopes that were new."""
        new = [scope for scope, generation in told.items() if generation > self._known.get(scope, 0)]
        for scope in new:
            self._known[scope] = told[scope]
            self.latest = max(self.latest, told[scope])
        return new

    def gone(self, key: str, generation: int) -> bool:
        """Whether an entry of that generation was purged."""
        if generation >= self.latest:
            return False
        tenant, model, _ = key.split(":", 2)
        scopes = (f"{tenant}:{model}", f"{tenant}:{_ANY}", f"{_ANY}:{model}", f"{_ANY}:{_ANY}")
        return any(generation < self._known.get(scope, 0) for scope in scopes)
