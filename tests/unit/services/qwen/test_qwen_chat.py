"""Answers, whole and streamed, and what a later question gets of them."""

import pytest
from conftest import StartTier
from qwen_doubles import MODEL, SAID, Engine


async def test_an_answer_comes_from_the_engine_and_says_so(start: StartTier, engine: Engine) -> None:
    tier = await start()
    answer = await tier.chat()
    assert answer.status == 200
    assert answer.text == SAID
    assert (answer.served_by, answer.cache, answer.context) == ("engine", "miss", "none")
    assert answer.headers["x-devmentor-instance"] == "here"
    assert answer.headers["x-request-id"]
    assert engine.questions[0]["model"] == MODEL


async def test_the_second_identical_question_does_not_reach_the_engine(start: StartTier, engine: Engine) -> None:
    tier = await start()
    first, second = await tier.chat(), await tier.chat()
    assert (second.served_by, second.cache) == ("cache-l1", "hit")
    assert second.raw == first.raw
    assert len(engine.questions) == 1


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"max_tokens": 3}, {"tools": []}, {"never_heard_of": 1}])
async def test_any_parameter_makes_another_question(start: StartTier, change: dict[str, object]) -> None:
    tier = await start()
    await tier.chat()
    assert (await tier.chat(**change)).cache == "miss"


async def test_tenants_do_not_share_answers(start: StartTier) -> None:
    tier = await start()
    await tier.chat()
    assert (await tier.chat(tenant="other")).cache == "miss"


async def test_no_store_neither_reads_nor_writes_and_no_cache_only_writes(start: StartTier, engine: Engine) -> None:
    tier = await start()
    assert (await tier.chat(headers={"Cache-Control": "no-store"})).cache == "bypass"
    assert (await tier.chat()).cache == "miss"
    assert (await tier.chat(headers={"Cache-Control": "no-cache"})).cache == "bypass"
    assert (await tier.chat(headers={"Cache-Control": "no-store"})).served_by == "engine"
    assert len(engine.questions) == 4


async def test_a_stream_arrives_and_its_answer_serves_both_ways_later(start: StartTier, engine: Engine) -> None:
    tier = await start()
    stream = await tier.chat(stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.streamed_text == SAID
    assert all(chunk["choices"] for chunk in stream.chunks), "usage was not asked for"
    whole = await tier.chat()
    assert (whole.cache, whole.text) == ("hit", SAID)
    assert whole.body["usage"]["total_tokens"] == 12
    again = await tier.chat(stream=True, stream_options={"include_usage": True})
    assert (again.cache, again.streamed_text) == ("hit", SAID)
    assert again.chunks[-1]["usage"]["total_tokens"] == 12
    assert len(engine.questions) == 1


async def test_tool_calls_of_two_choices_go_through_and_into_the_cache(start: StartTier, engine: Engine) -> None:
    tier = await start()
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    more = {"tools": tools, "tool_choice": "auto", "n": 2}
    stream = await tier.chat(stream=True, **more)
    asked = engine.questions[0]
    assert {name: asked[name] for name in more} == more
    assert [chunk["choices"][0]["index"] for chunk in stream.chunks] == [0] * 4 + [1] * 4
    whole = await tier.chat(**more)
    assert whole.cache == "hit"
    for number, choice in enumerate(whole.body["choices"]):
        function = {"name": "weather", "arguments": '{"city":"Bonn"}'}
        assert choice["message"]["tool_calls"] == [{"id": f"call_{number}", "type": "function", "function": function}]
        assert choice["finish_reason"] == "tool_calls"
    assert len(engine.questions) == 1


async def test_usage_is_streamed_where_the_client_asks(start: StartTier) -> None:
    tier = await start()
    answer = await tier.chat(stream=True, stream_options={"include_usage": True})
    assert answer.chunks[-1]["choices"] == []
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 5
