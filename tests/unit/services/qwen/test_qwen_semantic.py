"""The semantic cache: what may share an answer, what is told of it, and that nothing waits for it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import pytest
import pytest_asyncio
from conftest import StartTier, Tier
from pydantic import ValidationError
from qwen_doubles import MODEL, SAID, CacheNode, Engine, Pbml, serving, until
from semantic_doubles import Points, Words

from devmentor.qwen import semantic
from devmentor.qwen.semantic import Candidate
from devmentor.qwen.settings import QwenSettings


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    kept = Points()
    monkeypatch.setattr("devmentor.qwen.semantic_store.SemanticStore", lambda _settings: kept)
    return kept


@pytest_asyncio.fixture
async def words() -> Words:
    return Words()


@pytest_asyncio.fixture
async def tier(start: StartTier, words: Words, points: Points, urls: dict[str, str]) -> AsyncIterator[Tier]:
    async with serving(words.app) as url, remembering() as node:
        models = {MODEL: {"url": urls["engine"]}, "words": {"url": url, "kind": "embedding"}}
        yield await start(
            models=models,
            pbml_urls=[urls["pbml"]],
            cache_nodes=[node],
            semantic_model="words",
            qdrant_urls=["http://127.0.0.1:1"],
            semantic_budget_s=0.5,
            semantic_threshold=0.85,
        )


@asynccontextmanager
async def remembering() -> AsyncIterator[str]:
    """A cache node that remembers that there were no purges."""
    node = CacheNode()
    node.hashes[b"qwen:purges"] = {b"-:-": b"1"}
    async with node.serving() as address:
        yield address


async def kept(points: Points, number: int) -> None:
    await until(lambda: len(points.kept) >= number)


async def test_a_question_of_the_same_meaning_is_answered_and_says_whose_answer_it_is(
    tier: Tier, engine: Engine, points: Points
) -> None:
    first = await tier.chat("Wo liegt der schöne Hafen?")
    assert (first.served_by, first.cache) == ("engine", "miss")
    await kept(points, 1)
    second = await tier.chat("Wo liegt der schöne Hafen denn?")
    assert (second.served_by, second.cache, second.text) == ("cache-semantic", "hit", SAID)
    assert float(second.headers["x-devmentor-semantic-score"]) == pytest.approx(5 / math.sqrt(30), abs=1e-4)
    assert unquote(second.headers["x-devmentor-semantic-question"]) == "Wo liegt der schöne Hafen?"
    streamed = await tier.chat("Wo liegt der schöne Hafen denn?", stream=True)
    assert (streamed.served_by, streamed.streamed_text) == ("cache-semantic", SAID)
    assert (await tier.chat("Wo liegt der schöne Hafen?")).served_by == "cache-l1", "the exact cache comes first"


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "other"},
        {"temperature": 0.5},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "where is the harbour"}]},
        {"headers": {"X-DevMentor-Conversation": "talk-1"}},
        {"headers": {"X-DevMentor-Watermark": "pg:1"}},
        {"headers": {"Cache-Control": "no-cache"}},
        {"headers": {"X-DevMentor-Context": "none"}},
        {"max_tokens": 5},
    ],
)
async def test_nothing_crosses_a_partition(tier: Tier, points: Points, other: dict[str, Any]) -> None:
    await tier.chat("where is the harbour")
    await kept(points, 1)
    answer = await tier.chat("where is the harbour please", **other)
    assert answer.served_by == "engine"


async def test_a_new_document_ends_what_was_answered_before_it(tier: Tier, points: Points, pbml: Pbml) -> None:
    await tier.chat("where is the harbour")
    await kept(points, 1)
    pbml.learn("The harbour has moved.")
    assert (await tier.chat("where is the harbour please")).served_by == "engine"


async def test_what_is_not_whole_is_not_kept(tier: Tier, points: Points, engine: Engine) -> None:
    engine.mode = "break"
    await tier.chat("where is the harbour", stream=True)
    await tier.settle()
    assert points.kept == []
    whole = {"choices": [{"finish_reason": "stop", "message": {"content": "Here."}}]}
    assert semantic.complete(whole)
    for wrong in (
        {"choices": []},
        {"choices": [{"finish_reason": "length", "message": {"content": "He"}}]},
        {"choices": [{"finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [{}]}}]},
        {"choices": [*whole["choices"], {"finish_reason": "content_filter", "message": {"content": ""}}]},
    ):
        assert not semantic.complete(wrong)


async def test_a_store_that_is_away_is_a_miss_and_left_alone_after_three(tier: Tier, points: Points) -> None:
    points.down = True
    for number in range(6):
        assert (await tier.chat(f"question {number}")).served_by == "engine"
    assert points.searched == 3


async def test_a_slow_embedding_is_not_waited_for(start: StartTier, words: Words, points: Points, urls: Any) -> None:
    words.delay = 5.0
    async with serving(words.app) as url, remembering() as node, asyncio.timeout(4.0):
        models = {MODEL: {"url": urls["engine"]}, "words": {"url": url, "kind": "embedding"}}
        peers = ["http://127.0.0.1:1"]
        told = {"semantic_model": "words", "qdrant_urls": peers, "cache_nodes": [node], "semantic_budget_s": 0.05}
        tier = await start(models=models, probe_s=60, **told)
        assert (await tier.chat("where is the harbour")).served_by == "engine"
    assert points.searched == 0


async def test_off_by_default(start: StartTier, points: Points) -> None:
    tier = await start()
    await tier.chat("where is the harbour")
    await tier.settle()
    assert (points.kept, points.searched) == ([], 0)


def test_the_model_must_be_one_for_embeddings() -> None:
    given: dict[str, Any] = {"models": {MODEL: {"url": "http://127.0.0.1:1"}}, "tenants_file": "/x"}
    with pytest.raises(ValidationError, match="semantic_model must be an embedding model"):
        QwenSettings(**given, semantic_model=MODEL, qdrant_urls=["http://127.0.0.1:1"])


def test_purges_must_be_remembered_somewhere() -> None:
    models = {MODEL: {"url": "http://127.0.0.1:1"}, "words": {"url": "http://127.0.0.1:1", "kind": "embedding"}}
    given: dict[str, Any] = {"models": models, "tenants_file": "/x", "qdrant_urls": ["http://127.0.0.1:1"]}
    with pytest.raises(ValidationError, match="semantic_model needs cache_nodes"):
        QwenSettings(**given, semantic_model="words")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How do I open port 80?", "How can I open port 80", True),
        ("How do I open port 80?", "How do I open port 443?", False),
        ("Does it work in Debian?", "Does it not work in Debian?", False),
        ("Can I use it?", "Why can't I use it?", False),
        ("How do I enable TLS?", "How do I disable TLS?", False),
        ("How do I enable TLS?", "How can TLS be enabled, and how do I enable TLS", True),
        ("What does max_tokens do?", "What does min_tokens do?", False),
        ("Where is /etc/hosts?", "Where is /etc/passwd?", False),
        ("How do I replace a by b?", "How do I replace b by a?", False),
        ("How do I update vim alone?", "How do I update everything but vim?", False),
        ("What is HTTP?", "What is FTP?", False),
        ("Tell me of the year 1999.", "Tell me about the year 1999!", True),
    ],
)
def test_numbers_names_negations_and_opposites_tell_questions_apart(one: str, other: str, same: bool) -> None:
    assert semantic.may_share(one, other) is same
    assert semantic.may_share(other, one) is same


def test_a_question_that_the_model_would_not_see_whole_is_left_alone() -> None:
    from devmentor.qwen.requests import parse_chat

    def candidate(content: Any) -> Candidate | None:
        request = parse_chat({"model": MODEL, "messages": [{"role": "user", "content": content}]}, {})
        return semantic.candidate(request, "lab", "v1", mode="plain", model="m", most_chars=20)

    assert candidate("x" * 21) is None
    assert candidate([{"type": "image_url", "image_url": {}}, {"type": "text", "text": "what?"}]) is None
    assert candidate([{"type": "text", "text": "what?"}]) is not None
    assert json.dumps(candidate("what?").partition)  # type: ignore[union-attr]
