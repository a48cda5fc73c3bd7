"""A request's way through the tier, with every peer well and with each of them gone."""

import asyncio
import json

import pytest
from conftest import StartTier
from qwen_doubles import MODEL, WORDS, CacheNode, Engine, Pbml, serving, until

SAID = "".join(WORDS)


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


async def test_usage_is_streamed_where_the_client_asks(start: StartTier) -> None:
    tier = await start()
    answer = await tier.chat(stream=True, stream_options={"include_usage": True})
    assert answer.chunks[-1]["choices"] == []
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 5


async def test_context_is_in_the_prompt_with_its_source(
    start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str]
) -> None:
    pbml.learn("The code word is heron.")
    tier = await start(pbml_urls=[urls["pbml"]])
    answer = await tier.chat("What is the code word?")
    assert answer.context == "ok"
    system = engine.questions[0]["messages"][0]
    assert system["role"] == "system"
    assert "The code word is heron." in system["content"]
    assert "document_id doc-0, version 1, chunk 0" in system["content"]
    assert pbml.asked[0]["query"] == "What is the code word?"
    assert 0 < pbml.asked[0]["token_budget"] <= engine.context_length // 2
    assert pbml.authorizations == {"Bearer key-of-lab"}


async def test_a_new_document_makes_the_cached_answer_old(
    start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str]
) -> None:
    tier = await start(pbml_urls=[urls["pbml"]])
    await tier.chat()
    assert (await tier.chat()).cache == "hit"
    pbml.learn("News.")
    answer = await tier.chat()
    assert (answer.cache, answer.context) == ("miss", "ok")
    assert "News." in engine.questions[-1]["messages"][0]["content"]
    assert (await tier.chat()).cache == "hit"


async def test_a_watermark_is_passed_on_and_nothing_cached_counts(
    start: StartTier, pbml: Pbml, urls: dict[str, str]
) -> None:
    tier = await start(pbml_urls=[urls["pbml"]])
    await tier.chat()
    assert (await tier.chat(headers={"X-DevMentor-Watermark": "w7"})).cache == "miss"
    assert pbml.asked[-1]["watermark"] == "w7"


async def test_context_can_be_declined(start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str]) -> None:
    pbml.learn("Something.")
    tier = await start(pbml_urls=[urls["pbml"]])
    assert (await tier.chat(headers={"X-DevMentor-Context": "none"})).context == "none"
    assert len(engine.questions[0]["messages"]) == 1
    assert pbml.asked == []


async def test_without_pbml_the_answer_has_no_context_says_so_and_is_not_kept(
    start: StartTier, pbml: Pbml, urls: dict[str, str]
) -> None:
    pbml.down = True
    tier = await start(pbml_urls=[urls["pbml"]])
    answer = await tier.chat()
    assert (answer.status, answer.served_by, answer.context) == (200, "engine", "degraded")
    assert (await tier.chat()).served_by == "engine"


async def test_what_was_cached_still_serves_while_pbml_is_away(
    start: StartTier, pbml: Pbml, urls: dict[str, str]
) -> None:
    tier = await start(pbml_urls=[urls["pbml"]])
    await tier.chat()
    pbml.down = True
    answer = await tier.chat()
    assert (answer.cache, answer.context) == ("hit", "degraded")


async def test_the_second_replica_is_asked_when_the_first_is_gone(
    start: StartTier, pbml: Pbml, urls: dict[str, str]
) -> None:
    tier = await start(pbml_urls=["http://127.0.0.1:9", urls["pbml"]])
    pbml.learn("Found at the second.")
    assert (await tier.chat()).context == "ok"


async def test_a_conversation_is_written_back_and_its_turns_come_into_the_prompt(
    start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str]
) -> None:
    pbml.turns = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello Ada."}]
    tier = await start(pbml_urls=[urls["pbml"]])
    answer = await tier.chat("Who am I?", metadata={"conversation_id": "c1"})
    await tier.settle()
    roles = [(m["role"], m["content"]) for m in engine.questions[0]["messages"]]
    assert roles == [("user", "I am Ada."), ("assistant", "Hello Ada."), ("user", "Who am I?")]
    assert [(turn["role"], turn["content"]) for turn, _ in pbml.written] == [("user", "Who am I?"), ("assistant", SAID)]
    request_id = answer.headers["x-request-id"]
    assert [key for _, key in pbml.written] == [f"{request_id}-user", f"{request_id}-assistant"]
    assert pbml.asked[0]["conversation_id"] == "c1"
    assert "metadata" not in engine.questions[0]


async def test_a_streamed_turn_is_written_back_too(start: StartTier, pbml: Pbml, urls: dict[str, str]) -> None:
    tier = await start(pbml_urls=[urls["pbml"]])
    await tier.chat("Who?", stream=True, headers={"X-DevMentor-Conversation": "c2"})
    await tier.settle()
    assert [turn["role"] for turn, _ in pbml.written] == ["user", "assistant"]


async def test_a_cached_question_is_asked_again_in_another_conversation(
    start: StartTier, pbml: Pbml, urls: dict[str, str]
) -> None:
    tier = await start(pbml_urls=[urls["pbml"]])
    await tier.chat(headers={"X-DevMentor-Conversation": "a"})
    assert (await tier.chat(headers={"X-DevMentor-Conversation": "b"})).cache == "miss"


async def test_the_trace_shows_what_the_engine_got(
    start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str], admin_key: str
) -> None:
    pbml.learn("Traced text.")
    tier = await start(pbml_urls=[urls["pbml"]])
    answer = await tier.chat()
    path = f"/v1/traces/{answer.headers['x-request-id']}"
    trace = await tier.request("GET", path, headers={"Authorization": f"Bearer {admin_key}"})
    assert trace.body["engine_body"] == engine.questions[0]
    assert trace.body["served_by"] == "engine"
    assert trace.body["context"]["provenance"][0]["document_id"] == "doc-0"
    assert (await tier.request("GET", path)).status == 403
    assert (
        await tier.request("GET", "/v1/traces/unknown", headers={"Authorization": f"Bearer {admin_key}"})
    ).status == 404


# -- the engine fails ------------------------------------------------------------------------------------------------


async def test_an_old_answer_is_the_first_way_out(
    start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str]
) -> None:
    tier = await start(pbml_urls=[urls["pbml"]])
    first = await tier.chat()
    pbml.version = "d9.c0"
    engine.mode = "error"
    answer = await tier.chat()
    assert (answer.status, answer.served_by, answer.cache) == (200, "cache-stale", "stale")
    assert answer.raw == first.raw
    streamed = await tier.chat(stream=True)
    assert (streamed.served_by, streamed.streamed_text) == ("cache-stale", SAID)


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


async def test_then_what_pbml_found_saying_that_no_model_answered(
    start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str]
) -> None:
    pbml.learn("The code word is heron.")
    tier = await start(pbml_urls=[urls["pbml"]])
    engine.mode = "error"
    answer = await tier.chat()
    assert (answer.status, answer.served_by) == (200, "degraded")
    assert "No language model is available" in answer.text
    assert "The code word is heron." in answer.text
    streamed = await tier.chat(stream=True)
    assert streamed.served_by == "degraded"
    assert "heron" in streamed.streamed_text
    json_wanted = await tier.chat(response_format={"type": "json_object"})
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


# -- pool, cancellation, pings ---------------------------------------------------------------------------------------


async def test_one_request_too_many_waits_and_then_gets_429(start: StartTier, engine: Engine) -> None:
    tier = await start(pool_size=2, pool_wait_s=0.2, probe_s=60)
    engine.mode = "hang"
    held = [asyncio.create_task(tier.chat(str(n))) for n in range(2)]
    await until(lambda: len(engine.questions) == 2)
    refused = await tier.chat("third")
    assert refused.status == 429
    assert refused.body["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    waiting = asyncio.create_task(tier.chat("fourth"))
    await asyncio.sleep(0.05)
    engine.release.set()
    assert [answer.status for answer in await asyncio.gather(*held, waiting)] == [200, 200, 200]


@pytest.mark.parametrize(("mode", "stream"), [("hang", False), ("hang", True), ("pause", True)])
async def test_a_client_that_leaves_ends_the_engines_work_and_frees_its_slot(
    start: StartTier, engine: Engine, mode: str, stream: bool
) -> None:
    tier = await start(pool_size=1, pool_wait_s=0.1, probe_s=60)
    engine.mode = mode
    asking = asyncio.create_task(tier.chat("leaving", stream=stream))
    await until(lambda: bool(engine.questions))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: engine.cancelled == 1)
    engine.mode = "ok"
    assert (await tier.chat("next")).status == 200


async def test_silence_is_filled_with_comments(start: StartTier, engine: Engine) -> None:
    tier = await start(ping_s=0.05)
    engine.mode = "pause"
    asking = asyncio.create_task(tier.chat(stream=True))
    await asyncio.sleep(0.3)
    engine.release.set()
    answer = await asking
    assert answer.raw.count(b": ping\n\n") >= 2
    assert answer.streamed_text == SAID


async def test_a_late_first_token_finds_the_client_waiting_with_headers(start: StartTier, engine: Engine) -> None:
    tier = await start(ping_s=0.05)
    engine.mode = "hang"
    asking = asyncio.create_task(tier.chat(stream=True))
    await asyncio.sleep(0.3)
    engine.release.set()
    answer = await asking
    assert answer.served_by == "pending"
    assert b": served-by=engine cache=miss context=none\n\n" in answer.raw
    assert answer.streamed_text == SAID


async def test_an_error_after_the_headers_is_an_event(start: StartTier, engine: Engine) -> None:
    tier = await start(ping_s=0.05, silence_s=0.2)
    engine.mode = "hang"
    answer = await tier.chat(stream=True)
    assert b'"code":"engine_unavailable"' in answer.raw


# -- the second cache level ------------------------------------------------------------------------------------------


async def test_another_instance_finds_the_answer_in_the_second_level(start: StartTier, engine: Engine) -> None:
    node = CacheNode()
    async with node.serving() as address:
        one, other = await start(cache_nodes=[address]), await start(cache_nodes=[address])
        await one.chat()
        await one.settle()
        answer = await other.chat()
        assert (answer.served_by, answer.text) == ("cache-l2", SAID)
        assert (await other.chat()).served_by == "cache-l1"
        assert next(iter(node.expiries.values())) == 7 * 24 * 3600
        assert next(iter(node.keys)).startswith(b"qwen:lab:")
    assert len(engine.questions) == 1


async def test_a_slow_node_costs_its_budget_and_no_answer(start: StartTier) -> None:
    node = CacheNode()
    async with node.serving() as address:
        tier = await start(cache_nodes=[address], cache_budget_s=0.05)
        node.delay = 1.0
        began = asyncio.get_running_loop().time()
        answer = await tier.chat()
        assert (answer.status, answer.served_by) == (200, "engine")
        assert asyncio.get_running_loop().time() - began < 0.6


async def test_a_dead_node_is_left_alone_and_the_others_keep_working(start: StartTier) -> None:
    node = CacheNode()
    async with node.serving() as address:
        tier = await start(cache_nodes=["127.0.0.1:9", address])
        for number in range(8):
            assert (await tier.chat(str(number))).status == 200
        await tier.settle()
        assert len(node.keys) == 8, "the dead node's keys moved to the living one"


# -- requests and other endpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": MODEL}, "messages"),
        ({"model": MODEL, "messages": []}, "messages"),
        ({"model": MODEL, "messages": ["hello"]}, "messages.0"),
        ({"model": MODEL, "messages": [{"role": "pirate", "content": "x"}]}, "messages.0.role"),
        ({"model": MODEL, "messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x"}]}, "model"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": "yes"}, "stream"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens"),
    ],
)
async def test_a_wrong_request_names_the_parameter(start: StartTier, body: dict[str, object], param: str) -> None:
    tier = await start()
    answer = await tier.request("POST", "/v1/chat/completions", body)
    assert answer.status == 400
    assert set(answer.body["error"]) == {"message", "type", "code", "param"}
    assert answer.body["error"]["param"] == param


async def test_other_wrong_requests(start: StartTier) -> None:
    tier = await start()
    assert (await tier.request("POST", "/v1/chat/completions", b"{")).body["error"]["code"] == "invalid_json"
    unknown = await tier.request(
        "POST", "/v1/chat/completions", {"model": "gpt", "messages": [{"role": "user", "content": "x"}]}
    )
    assert (unknown.status, unknown.body["error"]["code"]) == (404, "model_not_found")
    kind = await tier.request("POST", "/v1/embeddings", {"model": MODEL, "input": "x"})
    assert kind.body["error"]["code"] == "wrong_model_kind"
    nobody = await tier.request("GET", "/v1/models", headers={"Authorization": "Bearer wrong"})
    assert nobody.status == 401


async def test_models_are_listed_chat_first(start: StartTier) -> None:
    tier = await start()
    assert [entry["id"] for entry in (await tier.request("GET", "/v1/models")).body["data"]] == [MODEL, "vectors"]
    assert (await tier.request("GET", f"/v1/models/{MODEL}")).body["id"] == MODEL
    assert (await tier.request("GET", "/v1/models/none")).status == 404


async def test_embeddings_are_cached_and_fail_plainly(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    ask = {"model": "vectors", "input": ["a", "b"]}
    first = await tier.request("POST", "/v1/embeddings", ask)
    assert (first.served_by, first.body["data"][0]["embedding"]) == ("engine", [0.5, 0.25])
    assert (await tier.request("POST", "/v1/embeddings", ask)).served_by == "cache-l1"
    engine.mode = "error"
    assert (await tier.request("POST", "/v1/embeddings", {"model": "vectors", "input": "new"})).status == 503


async def test_ready_needs_tokens_that_move(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=0.05, stuck_s=0.4)

    async def ready_is(status: int) -> str:
        async with asyncio.timeout(5):
            answer = await tier.request("GET", "/ready")
            while answer.status != status:
                await asyncio.sleep(0.05)
                answer = await tier.request("GET", "/ready")
        return str(answer.body["checks"][f"engine-{MODEL}"]["detail"])

    await ready_is(200)
    engine.mode = "hang"
    assert "no token" in await ready_is(503)
    engine.release.set()
    engine.mode = "ok"
    await ready_is(200)
    engine.mode = "error"
    assert "status 500" in await ready_is(503)


async def test_a_busy_engine_whose_counters_grow_is_ready(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=0.05, stuck_s=0.4)
    await asyncio.sleep(0.1)
    engine.mode = "hang"
    for _ in range(30):
        engine.slots[0]["n_decoded"] += 1
        await asyncio.sleep(0.05)
    assert (await tier.request("GET", "/ready")).status == 200
    engine.release.set()
