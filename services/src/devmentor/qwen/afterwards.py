"""What is left to do once a client has its answer: store it, write the turn back. Nobody waits for it but a stop."""

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any

from devmentor.qwen import metrics
from devmentor.qwen.answers import Job
from devmentor.qwen.cache import AnswerCache
from devmentor.qwen.pbml import Pbml, PbmlUnavailableError
from devmentor.qwen.semantic import Answer
from devmentor.qwen.semantic_cache import SemanticCache

log = logging.getLogger(__name__)

_BACKGROUND_MAX = 1000


class Afterwards:
    """Work behind the answers, bounded in number."""

    def __init__(self, cache: AnswerCache, pbml: Pbml, semantic: SemanticCache | None) -> None:
        self._semantic = semantic
        self._cache = cache
        self._pbml = pbml
        self._background: set[asyncio.Task[None]] = set()

    def answered(self, job: Job, model: str, payload: bytes, *, store: bool) -> None:
        """Once for each answer that an engine made: count its tokens, keep it. L1 has it when this returns."""
        try:
            usage = json.loads(payload).get("usage") or {}
        except (ValueError, AttributeError):
            return
        metrics.TOKENS.labels(model, "prompt").inc(usage.get("prompt_tokens") or 0)
        metrics.TOKENS.labels(model, "answer").inc(usage.get("completion_tokens") or 0)
        if store and job.storable:
            assert job.version is not None
            self.store(job.key, job.version, payload, job.context, job.generation)
            # An answer of another context version than the question was looked up with is not of its partition.
            if self._semantic is not None and job.semantic is not None and job.version == job.looked_up_version:
                self.spawn(self._semantic.store(job.semantic, Answer(payload, job.context, job.generation)))

    def store(self, key: str, version: str, payload: bytes, context: str, generation: int) -> None:
        """Keep an answer on both levels of the cache."""
        entry = self._cache.keep(key, version, payload, context, generation)
        if entry is not None:
            self.spawn(self._cache.share(key, entry))

    def write_back(self, job: Job, payload: bytes) -> None:
        """Once for each request that got an answer: its turn goes into its conversation."""
        conversation = job.request.conversation
        if conversation is not None and self._pbml.configured:
            answer = job.request.form.answer_text(json.loads(payload))
            self.spawn(self._add_turns(job, conversation, answer))

    async def _add_turns(self, job: Job, conversation: str, answer: str) -> None:
        turns = [("user", job.request.question), ("assistant", answer)]
        for role, content in turns:
            if not content:
                continue
            try:
                await self._pbml.add_turn(job.caller, conversation, role, content, f"{job.request_id}-{role}")
            except PbmlUnavailableError:
                metrics.TURNS.labels("lost").inc()
                return  # an answer without its question would be a lie in the conversation
            metrics.TURNS.labels("written").inc()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._background) >= _BACKGROUND_MAX:
            work.close()
            log.error("too much background work, one item dropped")
            return
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())

    async def drain(self, limit_s: float) -> None:
        """Wait for what is still being stored and written back."""
        if self._background:
            await asyncio.wait(set(self._background), timeout=limit_s)
