"""Purges carried out: those ordered here, and those of other instances as they are heard of.

Answers that are kept by meaning are also deleted in Qdrant, by each instance that hears of a purge: one that had not
heard of it yet may have kept another since. What could not be deleted is tried again until it is.

Where every node has lost its memory and no instance is left to tell it again, nobody knows what was purged: then
everything that was kept by meaning goes, and memory begins anew.
"""

import asyncio
import logging

from devmentor.qwen.cache import AnswerCache
from devmentor.qwen.purge import Purged, Scope
from devmentor.qwen.semantic_cache import SemanticCache

log = logging.getLogger(__name__)

_PATIENCE = 3  # polls in which another instance could have told the nodes


class Purging:
    """`learn` and `settle` are one poll; `run` polls for ever."""

    def __init__(self, cache: AnswerCache, semantic: SemanticCache | None) -> None:
        self._cache = cache
        self._semantic = semantic
        self._owed: dict[str, int] = {}  # purges that Qdrant has still to carry out: generation by scope
        self._unknown_polls = 0

    async def purge(self, scope: Scope) -> Purged:
        """Take back what a scope covers: here at once, at the other instances when they learn of it."""
        await self.learn()
        done = await self._cache.purge(scope)
        if self._semantic is not None:
            try:
                done.semantic = await self._semantic.forget(scope.text, done.generation)
            except Exception as error:  # whatever a client raises: who ordered it is told
                done.semantic_problem = _reason(error)
                self._owe(scope.text, done.generation)
        return done

    async def learn(self) -> None:
        """Ask the nodes for purges that other instances made."""
        new = await self._cache.learn_purges()
        if self._semantic is None or new is None:
            return
        for scope in new:
            self._owe(scope, self._cache.purges.known[scope])
        self._unknown_polls = self._unknown_polls + 1 if self._cache.purges.since is None else 0

    async def settle(self) -> None:
        """Have Qdrant carry out what it owes. Raises what its client raises."""
        if self._semantic is None:
            return
        for scope, generation in list(self._owed.items()):
            await self._semantic.forget(scope, generation)
            if self._owed.get(scope) == generation:
                del self._owed[scope]
        if self._unknown_polls >= _PATIENCE:
            await self._begin(self._semantic)

    async def _begin(self, semantic: SemanticCache) -> None:
        generation = self._cache.purges.next()
        removed = await semantic.forget(Scope().text, generation)
        self._cache.purges.begin(generation)
        self._unknown_polls = 0
        log.warning("no node remembers purges: the semantic cache begins anew", extra={"removed": removed})
        await self.learn()  # which tells the nodes

    async def run(self, every_s: float) -> None:
        """Poll for ever."""
        while True:
            try:
                await self.learn()
                await self.settle()
            except Exception as error:
                log.warning("purges not settled", extra={"reason": _reason(error)})
            await asyncio.sleep(every_s)

    def _owe(self, scope: str, generation: int) -> None:
        self._owed[scope] = max(generation, self._owed.get(scope, 0))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
