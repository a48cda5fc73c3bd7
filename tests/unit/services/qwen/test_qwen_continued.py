"""A stream that breaks in the middle, and another model that takes up the thread."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from conftest import StartTier, Tier
from qwen_doubles import MODEL, SAID, WORDS, Engine, Pbml, serving, until

ALLOWED = {"X-DevMentor-On-Break": "continue"}


@pytest_asyncio.fixture
async def second() -> AsyncIterator[Engine]:
    yield Engine()


@pytest_asyncio.fixture
async def paired(start: StartTier, engine: Engine, second: Engine, urls: dict[str, str]) -> AsyncIterator[Tier]:
    """A tier with a secondary, whose first engine breaks off after two words."""
    async with serving(second.app) as url:
        models = {MODEL: {"url": urls["engine"], "secondary": "spare"}, "spare": {"url": url}}
        engine.mode = "break"
        yield await start(models=models, probe_s=60, pbml_urls=[urls["pbml"]])


@pytest.mark.parametrize("allowed", [{"headers": ALLOWED}, {"metadata": {"on_break": "continue"}}])
async def test_it_continues_where_the_client_allowed_it_and_the_stream_says_so(
    paired: Tier, second: Engine, allowed: dict[str, Any]
) -> None:
    answer = await paired.chat(stream=True, max_tokens=50, **allowed)
    assert answer.served_by == "engine", "that is who began"
    assert answer.streamed_text == "".join(WORDS[:2]) + SAID
    assert len({chunk["id"] for chunk in answer.chunks}) == 1
    assert {chunk["model"] for chunk in answer.chunks} == {MODEL, "spare"}
    assert b": served-by=secondary continues a broken stream\n\n" in answer.raw
    assert answer.raw.endswith(b": served-by=engine,secondary\n\ndata: [DONE]\n\n")
    asked = second.questions[0]
    assert asked["messages"][-1] == {"role": "assistant", "content": "".join(WORDS[:2])}
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert asked["max_tokens"] == 48, "two tokens of fifty were there already"


async def test_it_does_not_where_nobody_allowed_it(paired: Tier, second: Engine) -> None:
    answer = await paired.chat(stream=True)
    assert b"engine_stream_broken" in answer.raw
    assert b"[DONE]" not in answer.raw
    assert second.questions == []


@pytest.mark.parametrize("other", [{"n": 2}, {"response_format": {"type": "json_object"}}])
async def test_half_of_something_else_than_words_is_not_continued(
    paired: Tier, second: Engine, other: dict[str, Any]
) -> None:
    answer = await paired.chat(stream=True, headers=ALLOWED, **other)
    assert b"engine_stream_broken" in answer.raw
    assert second.questions == []


@pytest.mark.parametrize("mode", ["error", "refuse", "break"])
async def test_where_the_other_one_fails_too_the_stream_ends_with_an_error(
    paired: Tier, second: Engine, mode: str
) -> None:
    second.mode = mode
    answer = await paired.chat(stream=True, headers=ALLOWED)
    last = [line for line in answer.raw.split(b"\n") if line.startswith(b"data: ")][-1]
    assert json.loads(last[6:])["error"]["code"] == "engine_stream_broken"


async def test_what_two_models_made_is_written_back_and_not_cached(paired: Tier, engine: Engine, pbml: Pbml) -> None:
    headers = ALLOWED | {"X-DevMentor-Conversation": "c"}
    await paired.chat(stream=True, headers=headers)
    await until(lambda: len(pbml.written) == 2)
    assert pbml.written[1][0]["content"] == "".join(WORDS[:2]) + SAID
    engine.mode = "ok"
    assert (await paired.chat(stream=True, headers=headers)).cache == "miss"


async def test_both_engines_slots_are_free_afterwards(paired: Tier, engine: Engine, second: Engine) -> None:
    from prometheus_client import REGISTRY

    await paired.chat(stream=True, headers=ALLOWED)
    for model in (MODEL, "spare"):
        assert REGISTRY.get_sample_value("devmentor_qwen_pool_in_use", {"model": model}) == 0


async def test_a_wish_that_is_none_is_refused(paired: Tier) -> None:
    answer = await paired.chat(stream=True, headers={"X-DevMentor-On-Break": "retry"})
    assert (answer.status, answer.body["error"]["param"]) == (400, "X-DevMentor-On-Break")


async def test_words_that_came_together_with_the_engines_error_are_not_lost(start: StartTier, second: Engine) -> None:
    def event(word: str) -> bytes:
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        return b"data: " + json.dumps({"id": "c", "created": 1, "model": MODEL, "choices": [choice]}).encode() + b"\n\n"

    async def chat(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event("one "))
        await response.write(event("two ") + b'data: {"error": {"message": "died", "code": 500}}\n\n')
        return response

    first = web.Application()
    first.add_routes([web.post("/v1/chat/completions", chat)])
    async with serving(first) as url, serving(second.app) as other:
        tier = await start(models={MODEL: {"url": url, "secondary": "spare"}, "spare": {"url": other}}, probe_s=60)
        answer = await tier.chat(stream=True, headers=ALLOWED)
    assert answer.streamed_text == "one two " + SAID
    assert second.questions[-1]["messages"][-1] == {"role": "assistant", "content": "one two "}
