"""The engine fails: what answers in its place, and when it is asked again."""

import asyncio
import json

from conftest import StartTier, Tier
from qwen_doubles import MODEL, SAID, Engine, Pbml, serving


async def test_an_old_answer_is_the_first_way_out(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    first = await grounded.chat()
    pbml.version = "d9.c0"
    engine.mode = "error"
    answer = await grounded.chat()
    assert (answer.status, answer.served_by, answer.cache) == (200, "cache-stale", "stale")
    assert answer.raw == first.raw
    streamed = await grounded.chat(stream=True)
    assert (streamed.served_by, streamed.streamed_text) == ("cache-stale", SAID)


async def test_a_client_says_how_old_an_old_answer_may_be(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    await grounded.chat()
    pbml.version = "d9.c0"
    engine.mode = "error"
    assert (await grounded.chat(headers={"Cache-Control": "stale-if-error=0"})).status == 503
    assert (await grounded.chat(headers={"Cache-Control": "stale-if-error=3600"})).served_by == "cache-stale"
    wrong = await grounded.chat(headers={"Cache-Control": "stale-if-error=long"})
    assert (wrong.status, wrong.body["error"]["param"]) == (400, "Cache-Control")


async def test_then_the_secondary_model(start: StartTier, engine: Engine, urls: dict[str, str]) -> None:
    second = Engine()
    async with serving(second.app) as url:
        models = {MODEL: {"url": urls["engine"], "secondary": "spare"}, "spare": {"url": url}}
        tier = await start(models=models)
        engine.mode = "error"
        answer = await tier.chat()
        assert (answer.served_by, answer.body["model"]) == ("secondary", "spare")
        assert (await tier.chat("another", stream=True)).served_by == "secondary"
        engine.mode = "ok"
        assert (await tier.chat()).served_by == "engine", "the secondary's answer must not be cached as the model's"


async def test_then_what_pbml_found_saying_that_no_model_answered(grounded: Tier, engine: Engine, pbml: Pbml) -> None:
    pbml.learn("The code word is heron.")
    engine.mode = "error"
    answer = await grounded.chat()
    assert (answer.status, answer.served_by) == (200, "degraded")
    assert "No language model is available" in answer.text
    assert "The code word is heron." in answer.text
    streamed = await grounded.chat(stream=True)
    assert streamed.served_by == "degraded"
    assert "heron" in streamed.streamed_text
    json_wanted = await grounded.chat(response_format={"type": "json_object"})
    assert json_wanted.status == 503, "prose is no answer to who asked for JSON"


async def test_with_nothing_left_the_error_says_what_is_away(start: StartTier, engine: Engine) -> None:
    engine.mode = "error"
    tier = await start()
    answer = await tier.chat()
    assert answer.status == 503
    assert answer.body["error"]["code"] == "engine_unavailable"
    assert "retry-after" in answer.headers


async def test_five_errors_open_the_breaker_and_a_success_after_the_pause_closes_it(
    start: StartTier, engine: Engine
) -> None:
    tier = await start(breaker_open_s=0.3, probe_s=60)
    engine.mode = "error"
    for number in range(7):
        assert (await tier.chat(str(number))).status == 503
    asked = len(engine.questions)
    assert asked == 5
    engine.mode = "ok"
    assert (await tier.chat("still open")).status == 503
    await asyncio.sleep(0.35)
    assert (await tier.chat("half-open")).status == 200
    assert (await tier.chat("closed")).status == 200


async def test_a_refused_request_is_the_clients_error_and_does_not_open_the_breaker(
    start: StartTier, engine: Engine
) -> None:
    tier = await start(probe_s=60)
    engine.mode = "refuse"
    for number in range(6):
        answer = await tier.chat(str(number))
        assert (answer.status, answer.body["error"]["code"]) == (400, "exceed_context_size_error")
    engine.mode = "ok"
    assert (await tier.chat("fine")).status == 200


async def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_cached(
    start: StartTier, engine: Engine
) -> None:
    tier = await start()
    engine.mode = "break"
    answer = await tier.chat(stream=True)
    last = [line for line in answer.raw.split(b"\n") if line.startswith(b"data: ")][-1]
    assert json.loads(last[6:])["error"]["code"] == "engine_stream_broken"
    assert b"[DONE]" not in answer.raw
    engine.mode = "ok"
    assert (await tier.chat()).cache == "miss"


async def test_a_silent_stream_is_broken_too(start: StartTier, engine: Engine) -> None:
    tier = await start(silence_s=0.2)
    engine.mode = "pause"
    answer = await tier.chat(stream=True)
    assert b"engine_stream_broken" in answer.raw


async def test_streams_that_break_one_after_another_open_the_breaker(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "break"
    for number in range(5):
        assert b"engine_stream_broken" in (await tier.chat(str(number), stream=True)).raw
    asked = len(engine.questions)
    assert (await tier.chat("6", stream=True)).status == 503
    assert len(engine.questions) == asked


async def test_streams_that_end_well_keep_the_breaker_closed(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    for number in range(5):
        engine.mode = "break"
        assert b"engine_stream_broken" in (await tier.chat(f"broken {number}", stream=True)).raw
        engine.mode = "ok"
        assert (await tier.chat(f"whole {number}", stream=True)).streamed_text == SAID
