"""What PBML has to say to a request: the version of it, the text that goes into the prompt, and excerpts where no model
answers."""

from devmentor.qwen import deadlines, metrics
from devmentor.qwen.answers import Job
from devmentor.qwen.context import Assembled, assemble, quote_chunk, token_budget
from devmentor.qwen.engine import Engine
from devmentor.qwen.pbml import Pbml, PbmlUnavailableError
from devmentor.qwen.requests import ChatRequest
from devmentor.qwen.settings import QwenSettings
from devmentor.qwen.trace import Trace

_QUERY_CHARS = 8000  # of a question that context is searched for; PBML takes no longer query


class Grounding:
    """Brings context into requests, and notes in the job how that went."""

    def __init__(self, settings: QwenSettings, pbml: Pbml) -> None:
        self._settings = settings
        self._pbml = pbml

    def wanted(self, request: ChatRequest) -> bool:
        """Whether the request is one that context goes into."""
        return request.wants_context and self._pbml.configured

    def mode(self, request: ChatRequest) -> str:
        """What of this the answer depends on: answers of different modes do not stand for each other."""
        if not self.wanted(request):
            return "plain"
        return "context" if request.context_tokens is None else f"context {request.context_tokens}"

    def limit_s(self, job: Job) -> float | None:
        """Seconds that PBML gets of a deadline, half of what is left; None where that is more than it gets anyway."""
        if not self.wanted(job.request):
            return None
        left = deadlines.left_s(job.deadline)
        return left / 2 if left is not None and left / 2 < self._settings.pbml_deadline_s else None

    async def learn_version(self, job: Job) -> None:
        if job.request.watermark is not None:
            # Who wants to read an own write is not served from before it: nothing cached counts as fresh.
            job.version = None
            return
        version = await self._pbml.version(job.caller, job.request.conversation)
        job.version = version.text
        if not version.current:
            job.context = "degraded"

    async def with_context(self, job: Job, engine: Engine) -> Assembled:
        """The messages with context; without, where PBML or the context length says so."""
        request = job.request
        messages = request.messages
        length = await engine.context_length()
        question = request.question[:_QUERY_CHARS]
        if not question or length is None:
            job.context = "none" if not question else "degraded"
            return Assembled(messages)
        budget = await token_budget(
            messages,
            context_length=length,
            answer_tokens=min(request.answer_tokens or self._settings.answer_tokens, length // 2),
            share=self._settings.context_share,
            most=request.context_tokens,
            count=engine.count_tokens,
        )
        if not budget:
            job.context = "none"
            return Assembled(messages)
        try:
            job.found = await self._pbml.context(
                job.caller,
                question,
                conversation=request.conversation,
                watermark=request.watermark,
                token_budget=budget,
                limit_s=self.limit_s(job),
            )
        except PbmlUnavailableError:
            job.context = "degraded"
            metrics.CONTEXT.labels("unavailable").inc()
            return Assembled(messages)
        assembled = await assemble(
            messages, job.found.chunks, job.found.turns, budget=budget, count=engine.count_tokens
        )
        # The version that the text was read at; the one the lookup was made with may be a moment older.
        job.version = job.found.version
        job.context = "degraded" if job.found.degraded else "none" if assembled.empty else "ok"
        metrics.CONTEXT.labels(job.context).inc()
        if self._settings.trace_size:
            job.trace = Trace(
                job.request_id, job.caller.tenant, request.model, context=job.context, provenance=assembled.provenance
            )
        return assembled

    async def excerpts(self, job: Job) -> list[str]:
        """What PBML found; asked now where the engine was away before context could be measured against it."""
        found = job.found
        if found is None and self.wanted(job.request) and job.request.question:
            try:
                found = await self._pbml.context(
                    job.caller,
                    job.request.question[:_QUERY_CHARS],
                    conversation=None,
                    watermark=job.request.watermark,
                    token_budget=self._settings.answer_tokens,
                    limit_s=self.limit_s(job),
                )
            except PbmlUnavailableError:
                return []
            job.context = "degraded" if found.degraded else "ok"
        # A summary is nothing to quote: it is of the conversation, and a model's words.
        chunks = [chunk for chunk in found.chunks if not chunk.is_summary] if found is not None else []
        return [quote_chunk(number, chunk) for number, chunk in enumerate(chunks[:5], start=1)]
