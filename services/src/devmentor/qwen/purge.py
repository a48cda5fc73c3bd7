"""Which cached answers an operator has taken back.

A purge is a generation number for a scope: a tenant, a model, both, or everything. An entry holds the highest number
that was known where its question came in, and one with a lower number than a purge of its scope is gone, wherever it
still lies and whenever it was stored: an answer that was under way during the purge does not bring it back.
Numbers are microseconds of the purging host's clock, or one more than the highest known where that clock is behind.

A key is TENANT:MODEL:DIGEST, the model as a short digest because its name may hold anything.

What lies in Qdrant outlives the nodes that the numbers are kept on, so the semantic cache must know whether it knows
them: `since` is a number from which on no purge was forgotten. It is kept and passed on with the others, under a scope
that no tenant has; an instance that hears of none does not know.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_ANY = "*"
_SINCE = "-:-"


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
    """What a purge found: entries dropped from L1 here, from L2 and by meaning (None: there is no such cache), and what
    nodes and Qdrant said ("" is well)."""

    generation: int
    l1: int
    l2: int = 0
    nodes: dict[str, str] = field(default_factory=dict)
    semantic: int | None = None
    semantic_problem: str = ""

    @property
    def failed(self) -> dict[str, str]:
        """Nodes that were not told, and why."""
        return {node: why for node, why in self.nodes.items() if why}

    @property
    def complete(self) -> bool:
        return not self.failed and not self.semantic_problem

    def shortfall(self) -> tuple[str, str] | None:
        """Code and message for who ordered it, where it must be ordered again."""
        unheard = bool(self.nodes) and len(self.failed) == len(self.nodes)
        if not unheard and not self.semantic_problem:
            return None
        if not unheard:
            return "semantic_cache_away", (
                "the exact cache is purged, and no instance serves such an answer by meaning once it has heard of it "
                "(within seconds); but Qdrant has not deleted the answers: send it again when it is there: "
                f"{self.semantic_problem}"
            )
        where = "on this instance alone" if self.semantic is None else "on this instance and in Qdrant"
        why = [f"{node}: {why}" for node, why in self.failed.items()] + [self.semantic_problem] * bool(
            self.semantic_problem
        )
        return "cache_nodes_away", (
            f"purged {where}; the other instances hear of nothing while no Valkey node answers, and serve what they "
            f"have: send it again: {'; '.join(why)}"
        )


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

    @property
    def since(self) -> int | None:
        """The number from which on no purge was forgotten; None: nobody has said so."""
        return self._known.get(_SINCE)

    def begin(self, generation: int) -> None:
        """From here on none is forgotten: what is older was removed."""
        self.learn({_SINCE: generation})

    def next(self) -> int:
        """The number of a purge that is made now."""
        return max(time.time_ns() // 1000, self.latest + 1)

    def learn(self, told: Mapping[str, int]) -> list[str]:
        """Take over what another one knows; the scopes whose purges were new."""
        new = [scope for scope, generation in told.items() if generation > self._known.get(scope, 0)]
        for scope in new:
            self._known[scope] = told[scope]
            self.latest = max(self.latest, told[scope])
        return [scope for scope in new if scope != _SINCE]

    def gone(self, key: str, generation: int) -> bool:
        """Whether an entry of that generation was purged."""
        if generation >= self.latest:
            return False
        return generation < self._last_of(key)

    def floor(self, key: str) -> int | None:
        """The least generation of an entry that nobody has purged, wherever it was kept since; None: not known."""
        return max(self.since, self._last_of(key)) if self.since is not None else None

    def _last_of(self, key: str) -> int:
        """The latest purge that covers a key; 0: none."""
        tenant, model, _ = key.split(":", 2)
        scopes = (f"{tenant}:{model}", f"{tenant}:{_ANY}", f"{_ANY}:{model}", f"{_ANY}:{_ANY}")
        return max(self._known.get(scope, 0) for scope in scopes)
