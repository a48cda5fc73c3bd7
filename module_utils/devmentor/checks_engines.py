"""verify's checks of the engines: a token generated, a text embedded."""

from __future__ import annotations

import collections.abc as c
import time

from .checks_base import Failed, Plan, Recorder
from .checks_client import Answer, ask

EMBEDDING_DIMENSIONS = 384


def judge_completion(answer: Answer) -> str:
    """A chat completion with at least one generated token."""
    body = answer.json()
    tokens = (body.get("usage") or {}).get("completion_tokens") or 0
    text = body["choices"][0]["message"].get("content") or ""
    if not tokens and not text:
        raise Failed("the completion is empty")
    served = answer.headers.get("x-devmentor-served-by")
    if served not in (None, "engine"):
        raise Failed(f"served by {served}, not by the engine")
    return f"{tokens or 'some'} tokens{' by the engine' if served else ''}"


def completion(plan: Plan, base: str, headers: c.Mapping[str, str] | None = None) -> str:
    began = time.monotonic()
    model = ask(plan, "GET", f"{base}/v1/models", headers=headers).json()["data"][0]["id"]
    body = {
        "model": model,
        # Never the same twice: a cached answer would show nothing about the engine.
        "messages": [{"role": "user", "content": f"verify {plan.run} {plan.host} {time.monotonic_ns()}"}],
        "max_tokens": 4,
    }
    evidence = judge_completion(ask(plan, "POST", f"{base}/v1/chat/completions", body, headers, timeout=60))
    return f"{evidence} of {model} in {time.monotonic() - began:.2f} s"


def check_engine(plan: Plan, record: Recorder) -> None:
    record.check("token generated", lambda: completion(plan, plan.engine_url))


def check_embeddings(plan: Plan, record: Recorder) -> None:
    def embedding() -> str:
        url = f"http://127.0.0.1:{plan.ports['llamacpp_embed']}/v1/embeddings"
        body = {"input": f"verify {plan.run}", "model": plan.embedding_model}
        vector = ask(plan, "POST", url, body).json()["data"][0]["embedding"]
        if len(vector) != EMBEDDING_DIMENSIONS or not any(vector):
            raise Failed(f"a vector of {len(vector)} dimensions, {EMBEDDING_DIMENSIONS} are needed")
        return f"a vector of {len(vector)} dimensions"

    record.check("text embedded", embedding)
