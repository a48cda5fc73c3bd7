"""Legacy completions: the same way as a chat's, in the older form."""

import asyncio
from typing import Any

import pytest
from conftest import Answer, StartTier, Tier
from qwen_doubles import MODEL, SAID, Engine, Pbml, until
from test_qwen_flights import shared

from devmentor.qwen import legacy, sse
from devmentor.qwen.completions import BrokenStreamError


async def complete(
    tier: Tier, prompt: Any = "Who is there?", headers: dict[str, str] | None = None, **more: Any
) -> Answer:
    body = {"model": MODEL, "prompt": prompt, **more}
    return await tier.request("POST", "/v1/completions", body, tier.headers() | (headers or {}))


def text_of(answer: Answer) -> dict[int, str]:
    """What a stream said, by choice."""
    said: dict[int, str] = {}
    for chunk in answer.chunks:
        assert chunk["object"] == "text_completion"
        for choice in chunk["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + choice["text"]
    return said


async def test_an_answer_is_cached_and_serves_both_ways(start: StartTier, engine: Engine) -> None:
    tier = await start()
    first = await complete(tier)
    assert (first.served_by, first.body["choices"][0]["text"]) == ("engine", SAID + "0")
    again = await complete(tier, stream=True)
    assert (again.served_by, text_of(again)) == ("cache-l1", {0: SAID + "0"})
    assert engine.questions[0]["prompt"] == "Who is there?"
    assert len(engine.questions) == 1


async def test_a_stream_of_two_choices_is_cached_whole(start: StartTier, engine: Engine) -> None:
    tier = await start()
    both = {0: SAID + "0", 1: SAID + "1"}
    assert text_of(await complete(tier, stream=True, n=2)) == both
    whole = await complete(tier, n=2)
    assert whole.cache == "hit"
    assert {choice["index"]: choice["text"] for choice in whole.body["choices"]} == both
    counted = await complete(tier, n=2, stream=True, stream_options={"include_usage": True})
    assert counted.chunks[-1]["usage"]["total_tokens"] == 12


async def test_a_chat_and_a_completion_are_never_taken_for_each_other(start: StartTier, engine: Engine) -> None:
    tier = await start()
    await complete(tier, "x")
    assert (await tier.chat("x")).cache == "miss"


async def test_equal_ones_share(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    before = shared()
    asking = [asyncio.create_task(complete(tier)) for _ in range(5)]
    await until(lambda: shared() - before == 4)
    engine.release.set()
    assert {answer.status for answer in await asyncio.gather(*asking)} == {200}
    assert len(engine.questions) == 1


async def test_the_deadline_holds_here_too(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "hang"
    answer = await complete(tier, headers={"X-DevMentor-Deadline-Ms": "100"})
    assert (answer.status, answer.body["error"]["code"]) == (429, "deadline_exceeded")


async def test_context_comes_only_into_a_conversation(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    pbml.learn("The code word is heron.")
    pbml.turns = [{"role": "user", "content": "earlier"}]
    assert (await complete(grounded, "alone")).context == "none"
    assert pbml.asked == []
    answer = await complete(grounded, "together", headers={"X-DevMentor-Conversation": "c"})
    assert answer.context == "ok"
    prompt = engine.questions[-1]["prompt"]
    assert "heron" in prompt
    assert prompt.endswith("\n\nuser: earlier\n\ntogether")
    assert "messages" not in engine.questions[-1]
    await until(lambda: len(pbml.written) == 2)
    assert [turn["content"] for turn, _ in pbml.written] == ["together", SAID + "0"]


async def test_an_old_answer_is_its_fallback_and_then_an_error(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60, cache_l1_ttl_s=0.001)
    await complete(tier)
    await asyncio.sleep(0.01)
    engine.mode = "error"
    assert (await complete(tier)).served_by == "cache-stale"
    assert (await complete(tier, "new")).status == 503


@pytest.mark.parametrize(
    ("more", "param"), [({"prompt": ""}, "prompt"), ({"prompt": 7}, "prompt"), ({"max_tokens": 0}, "max_tokens")]
)
async def test_a_wrong_request_names_the_parameter(start: StartTier, more: dict[str, Any], param: str) -> None:
    answer = await complete(await start(), **more)
    assert (answer.status, answer.body["error"]["param"]) == (400, param)


async def test_a_list_of_prompts_goes_through_as_it_came(start: StartTier, engine: Engine) -> None:
    await complete(await start(), ["a", "b"])
    assert engine.questions[0]["prompt"] == ["a", "b"]


@pytest.mark.parametrize("logprobs", [None, {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]}])
def test_a_replayed_answer_adds_up_to_itself(logprobs: dict[str, Any] | None) -> None:
    choices = [
        {"index": 0, "text": "a" * 200 + "ü", "logprobs": logprobs, "finish_reason": "length"},
        {"index": 1, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]
    whole = {"id": "x", "created": 1, "model": "m", "object": "text_completion", "choices": choices, "usage": {"n": 3}}
    events = list(legacy.replay(whole, include_usage=True))
    assert events[-1] == sse.DONE
    assert legacy.assemble(sse.payload(event.removesuffix(b"\n\n")) for event in events[:-1]) == whole


def test_half_an_answer_is_none() -> None:
    with pytest.raises(BrokenStreamError):
        legacy.assemble([b'{"choices":[{"index":0,"text":"half","finish_reason":null}]}'])
