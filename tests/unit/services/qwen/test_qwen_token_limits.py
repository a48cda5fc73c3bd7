"""Token budgets as a client sees them: headers, 429, and what whole, streamed, broken and cancelled answers cost."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from budget_doubles import Clock, MemoryStore
from conftest import KEYS, StartTier, Tier
from qwen_doubles import MODEL, SAID, Engine, until

from devmentor.common.auth import TenantsFileError
from devmentor.qwen.app import build
from devmentor.qwen.budget_spending import Estimate, embedding_estimate, stream_tokens
from devmentor.qwen.budgets import duration
from devmentor.qwen.settings import QwenSettings

LIMIT = 1000
USED = 12  # what the engine double says of every answer
# "Who is there?" is four tokens and a message's frame; the answer is bounded by 100.
ESTIMATE = 4 + 4 + 100

StartLimited = Callable[..., Awaitable[Tier]]


def write_tenants(path: Path, **lab: int) -> None:
    entries = [{"tenant": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]
    path.write_text(json.dumps([{**entry, **(lab if entry["tenant"] == "lab" else {})} for entry in entries]))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    kept = MemoryStore(Clock())
    monkeypatch.setattr("devmentor.qwen.app.PostgresStore", lambda _settings: kept)
    return kept


@pytest.fixture
def limited(start: StartTier, store: MemoryStore, tmp_path: Path) -> StartLimited:
    """A tier where tenant lab's key has a budget."""

    async def begin(budget: dict[str, int] | None = None, **settings: Any) -> Tier:
        write_tenants(tmp_path / "tenants.json", **(budget or {"tokens_per_minute": LIMIT}))
        given = {"database": "host=127.0.0.1 port=1", "answer_tokens": 100, "budget_lend_share": 0.0, **settings}
        return await start(**given)

    return begin


def left(answer: Any) -> int:
    return int(answer.headers["x-ratelimit-remaining-tokens"])


async def test_an_answer_says_what_is_left_and_costs_what_the_engine_counted(limited: StartLimited) -> None:
    tier = await limited()
    first = await tier.chat(headers={"Cache-Control": "no-store"})
    assert first.headers["x-ratelimit-limit-tokens"] == str(LIMIT)
    assert left(first) == LIMIT - ESTIMATE
    assert first.headers["x-ratelimit-reset-tokens"].endswith("s")
    second = await tier.chat(headers={"Cache-Control": "no-store"})
    assert left(second) == LIMIT - USED - ESTIMATE
    streamed = await tier.chat(headers={"Cache-Control": "no-store"}, stream=True)
    assert streamed.streamed_text == SAID
    assert left(streamed) == LIMIT - 2 * USED - ESTIMATE
    vectors = await tier.request("POST", "/v1/embeddings", {"model": "vectors", "input": "12345678"})
    assert left(vectors) == LIMIT - 3 * USED - 2


async def test_a_cached_answer_costs_nothing_and_comes_when_the_budget_is_used_up_or_unknown(
    limited: StartLimited, store: MemoryStore
) -> None:
    tier = await limited()
    await tier.chat("known")
    await tier.settle()
    assert (await tier.chat("big", max_tokens=900)).status == 200
    before = len(store.asked)
    hit = await tier.chat("known")
    assert (hit.status, hit.served_by) == (200, "cache-l1")
    assert "x-ratelimit-limit-tokens" not in hit.headers
    assert len(store.asked) == before
    store.mode = "away"
    store.clock.now += 100
    assert (await tier.chat("known")).served_by == "cache-l1"


async def test_a_budget_used_up_is_429_in_openais_form(limited: StartLimited, engine: Engine) -> None:
    tier = await limited()
    engine.mode = "hang"
    running = [asyncio.create_task(tier.chat(str(number), max_tokens=400)) for number in range(2)]
    await until(lambda: len(engine.questions) == 2)
    answer = await tier.chat("one too many", max_tokens=400)
    assert answer.status == 429
    error = answer.body["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "tokens per minute (TPM): Limit 1000, Requested 407, Remaining 190" in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert left(answer) == 190
    engine.mode = "ok"
    assert (await tier.chat("another key has no budget", tenant="other")).status == 200
    engine.release.set()
    assert {answer.status for answer in await asyncio.gather(*running)} == {200}


async def test_a_request_larger_than_the_limit_is_not_worth_sending_again(limited: StartLimited) -> None:
    tier = await limited({"tokens_per_day": LIMIT})
    answer = await tier.chat(max_tokens=500, n=2)
    assert answer.status == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "Request too large on tokens per day (TPD)" in answer.body["error"]["message"]


async def test_what_came_to_nothing_costs_nothing(limited: StartLimited, engine: Engine) -> None:
    tier = await limited(breaker_errors=50)
    for mode in ("error", "refuse"):
        engine.mode = mode
        for stream in (False, True):
            assert (await tier.chat(mode, stream=stream)).status in (400, 503)
    engine.mode = "ok"
    assert left(await tier.chat()) == LIMIT - ESTIMATE


async def test_a_cancelled_stream_costs_what_was_made_of_it(limited: StartLimited, engine: Engine) -> None:
    tier = await limited()
    engine.mode = "pause"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Who is there?"}], "stream": True}
    async with tier.session.post(tier.url + "/v1/chat/completions", json=body, headers=tier.headers()) as response:
        assert b"lo " in await response.content.readuntil(b"lo ")
        response.close()
    await until(lambda: engine.cancelled == 1 and engine.active == 0)
    engine.mode = "ok"
    made = 4 + 4 + 2  # the prompt as estimated, and two chunks
    assert left(await tier.chat()) == LIMIT - made - ESTIMATE


async def test_a_broken_stream_costs_what_was_made_of_it(limited: StartLimited, engine: Engine) -> None:
    tier = await limited()
    engine.mode = "break"
    assert b"engine_stream_broken" in (await tier.chat(stream=True)).raw
    engine.mode = "ok"
    assert left(await tier.chat()) == LIMIT - 10 - ESTIMATE


async def test_a_cancelled_whole_answer_costs_its_estimate(limited: StartLimited, engine: Engine) -> None:
    tier = await limited()
    engine.mode = "hang"
    task = asyncio.create_task(tier.chat())
    await until(lambda: len(engine.questions) == 1)  # beside the tier's own probe, which hangs as well
    task.cancel()
    await until(lambda: engine.cancelled >= 1)
    engine.mode = "ok"
    assert left(await tier.chat()) == LIMIT - 2 * ESTIMATE


async def test_with_the_database_away_a_key_with_a_budget_gets_its_lease_and_then_429(
    limited: StartLimited, store: MemoryStore
) -> None:
    store.mode = "away"
    tier = await limited()
    answer = await tier.chat()
    assert (answer.status, answer.body["error"]["code"]) == (429, "budget_unknown")
    assert answer.headers["retry-after"] == "1"
    assert (await tier.chat(tenant="other")).status == 200
    ready = (await tier.request("GET", "/ready")).body["checks"]["budgets"]
    assert not ready["required"]


async def test_with_the_database_away_a_loan_keeps_the_tier_answering(
    limited: StartLimited, store: MemoryStore
) -> None:
    store.mode = "away"
    tier = await limited(budget_lend_share=0.5)
    for number in range(20):
        assert (await tier.chat(str(number))).status == 200, "each is settled before the next: none owes its estimate"


def test_a_budget_without_a_database_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "tenants.json"
    write_tenants(path, tokens_per_day=5)
    given: dict[str, Any] = {"models": {MODEL: {"url": "http://127.0.0.1:1"}}, "tenants_file": path}
    with pytest.raises(TenantsFileError, match="set QWEN_DATABASE"):
        build(QwenSettings(**given))


@pytest.mark.parametrize("limit", [0, -1, True, "5", 1.5])
def test_a_limit_is_a_positive_integer(tmp_path: Path, limit: Any) -> None:
    path = tmp_path / "tenants.json"
    write_tenants(path, tokens_per_minute=limit)
    given: dict[str, Any] = {"models": {MODEL: {"url": "http://127.0.0.1:1"}}, "tenants_file": path}
    with pytest.raises(TenantsFileError, match="entry 0: tokens_per_minute must be a positive integer"):
        build(QwenSettings(**given, database="host=x"))


def test_estimates() -> None:
    assert embedding_estimate(["12345", [1, 2, 3], [[1], "123"]]).total == 2 + 3 + 1 + 1
    estimate = Estimate(10, 100)
    chunk = json.dumps({"choices": [{"delta": {"content": "x" * 38}}]}).encode()
    assert stream_tokens([], estimate) == 10
    assert stream_tokens([chunk], estimate) == 10 + 10, "a chunk of many tokens counts by its bytes"
    assert stream_tokens([chunk, b'{"choices":[],"usage":{"total_tokens":7}}'], estimate) == 7
    assert [duration(s) for s in (0.25, 12, 360, 86399)] == ["250ms", "12s", "6m0s", "23h59m59s"]


@pytest.mark.parametrize("how", ["deadline", "leaves"])
async def test_waiting_for_a_turn_that_never_came_costs_nothing(
    limited: StartLimited, engine: Engine, how: str
) -> None:
    tier = await limited(pool_size=1, pool_wait_s=5, probe_s=60)
    engine.mode = "hang"
    first = asyncio.create_task(tier.chat("first", tenant="other"))
    await until(lambda: len(engine.questions) == 1)
    if how == "deadline":
        answer = await tier.chat("second", max_tokens=300, headers={"X-DevMentor-Deadline-Ms": "400"})
        assert answer.status == 429
    else:
        second = asyncio.create_task(tier.chat("second", max_tokens=300))
        await asyncio.sleep(0.3)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await asyncio.sleep(0.3)
    assert len(engine.questions) == 1
    engine.mode = "ok"
    engine.release.set()
    await first
    assert left(await tier.chat()) == LIMIT - ESTIMATE


async def test_an_equal_question_on_another_keys_budget_is_an_answer_of_its_own(
    start: StartTier, store: MemoryStore, tmp_path: Path, engine: Engine
) -> None:
    """Or a key without a budget would be refused, with 429, for what another key of its tenant has used up."""
    keys = {"poor": {"tokens_per_minute": LIMIT}, "rich": {}}
    entries = [
        {"tenant": "lab", "key_sha256": hashlib.sha256(key.encode()).hexdigest(), **budget}
        for key, budget in keys.items()
    ]
    (tmp_path / "tenants.json").write_text(json.dumps(entries))
    tier = await start(database="host=127.0.0.1 port=1", budget_lend_share=0.0, probe_s=60)
    engine.mode = "hang"
    asking = []
    for count, key in enumerate(["poor", "rich"], start=1):
        asking.append(asyncio.create_task(tier.chat("same", headers={"Authorization": f"Bearer {key}"})))
        await until(lambda count=count: len(engine.questions) == count)  # type: ignore[misc]
    engine.release.set()
    poor, rich = await asyncio.gather(*asking)
    assert left(poor) < LIMIT
    assert (rich.status, rich.cache) == (200, "miss")
    assert "x-ratelimit-limit-tokens" not in rich.headers
