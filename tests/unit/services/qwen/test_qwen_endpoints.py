"""Wrong requests, the other endpoints, readiness."""

import asyncio

import pytest
from conftest import StartTier
from qwen_doubles import MODEL, Engine


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": MODEL}, "messages"),
        ({"model": MODEL, "messages": []}, "messages"),
        ({"model": MODEL, "messages": ["hello"]}, "messages.0"),
        ({"model": MODEL, "messages": [{"role": "pirate", "content": "x"}]}, "messages.0.role"),
        ({"model": MODEL, "messages": [{"role": [], "content": "x"}]}, "messages.0.role"),
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
        async with asyncio.timeout(30):
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
