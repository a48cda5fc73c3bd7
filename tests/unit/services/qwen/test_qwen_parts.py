"""The tier's parts by themselves."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from devmentor.common.errors import ApiError
from devmentor.pbml.models import ContextRequest
from devmentor.qwen import completions, rendezvous, sse
from devmentor.qwen.cache import L1, AnswerCache, Entry
from devmentor.qwen.context import assemble, token_budget
from devmentor.qwen.pbml import Chunk
from devmentor.qwen.requests import cache_key, parse_chat
from devmentor.qwen.settings import QwenSettings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def no_counter(_text: str) -> int | None:
    raise AssertionError("nobody had to count")


async def quarter(text: str) -> int | None:
    return -(-len(text) // 4)


async def silent(_text: str) -> int | None:
    return None


# -- completions -----------------------------------------------------------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a" * 200 + "ü"},
        {"content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {"content": "see", "reasoning_content": "because " * 20},
    ],
)
def test_a_replayed_answer_adds_up_to_itself(message: dict[str, Any]) -> None:
    whole = {
        "id": "x",
        "created": 1,
        "model": "m",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"},
            {"index": 1, "message": {"role": "assistant", "content": "other"}, "finish_reason": "length"},
        ],
        "usage": {"total_tokens": 3},
    }
    events = list(completions.replay(whole, include_usage=True))
    assert events[-1] == sse.DONE
    again = completions.assemble(sse.payload(event.removesuffix(b"\n\n")) for event in events[:-1])
    for choice in again["choices"]:
        choice["message"]["content"] = choice["message"]["content"] or None
    assert again == whole


def test_half_an_answer_is_none() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]}
    with pytest.raises(completions.BrokenStreamError):
        completions.assemble([json.dumps(chunk).encode()])
    with pytest.raises(completions.BrokenStreamError):
        completions.assemble([])


# -- cache -----------------------------------------------------------------------------------------------------------


def test_l1_stays_within_its_bound_and_drops_what_was_used_longest_ago() -> None:
    cache = L1(10_000, 60)
    for number in range(20):
        cache.put(str(number), Entry(b"x" * 600, "v", 0))
        cache.get("0")
        assert cache.bytes <= 10_000
    assert len(cache) == 10
    assert cache.get("0") is not None
    assert cache.get("1") is None
    cache.put("huge", Entry(b"x" * 20_000, "v", 0))
    assert cache.get("huge") is None
    for number in range(20):
        cache.drop(str(number))
    assert (cache.bytes, len(cache)) == (0, 0)


async def test_freshness_is_version_and_age_and_the_rest_is_stale_for_a_while() -> None:
    clock = Clock()
    cache = AnswerCache(L1(10_000, 3600, clock), None, l2_ttl_s=86400, stale_s=604800, entry_bytes=1000, clock=clock)
    assert cache.keep("lab:m:k", "v1", b"answer", "ok", 0) is not None
    assert (await cache.lookup("lab:m:k", "v1")).level == "l1"
    other = await cache.lookup("lab:m:k", "v2")
    assert other.hit is None
    assert other.stale is not None
    assert (await cache.lookup("lab:m:k", None)).hit is None
    clock.now += 3601
    assert (await cache.lookup("lab:m:k", "v1")).hit is None
    assert (await cache.lookup("lab:m:k", "v1")).stale is not None
    clock.now += 604800
    assert (await cache.lookup("lab:m:k", "v1")).stale is None
    assert cache.keep("lab:m:large", "v1", b"x" * 1001, "ok", 0) is None
    assert (await cache.lookup("lab:m:large", "v1")).hit is None


def test_an_entry_survives_the_wire_and_an_unknown_format_is_a_miss() -> None:
    entry = Entry(b'{"a":\n1}', "d1.c0", 12.5, "ok")
    assert Entry.decode(entry.encode()) == entry
    assert Entry.decode(b'{"f":99,"v":"","t":0,"c":""}\nx') is None
    assert Entry.decode(b"garbage") is None


def test_a_lost_node_moves_only_its_own_keys() -> None:
    nodes = ["a:1", "b:1", "c:1"]
    before = {key: rendezvous.choose(key, nodes) for key in map(str, range(300))}
    after = {key: rendezvous.choose(key, ["a:1", "c:1"]) for key in before}
    assert all(after[key] == node for key, node in before.items() if node != "b:1")
    assert all(60 < list(before.values()).count(node) < 140 for node in nodes)
    assert rendezvous.choose("x", []) is None


def test_the_key_is_about_the_answer_not_its_delivery() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    key = cache_key("chat", "lab", body, "plain", None)
    reordered = dict(reversed(body.items()))
    assert cache_key("chat", "lab", {**reordered, "stream": True, "user": "u", "metadata": {}}, "plain", None) == key
    assert cache_key("chat", "lab", body, "plain", "conversation") != key
    assert cache_key("chat", "lab", {**body, "messages": [{"role": "user", "content": "x "}]}, "plain", None) != key
    assert cache_key("chat", "lab2", body, "plain", None) != key


# -- context ---------------------------------------------------------------------------------------------------------

USER = [{"role": "user", "content": "question"}]


async def test_the_engine_counts_only_where_bytes_cannot_tell() -> None:
    assert await token_budget(USER, context_length=4096, answer_tokens=512, share=0.5, count=no_counter) == 2048
    long = [{"role": "user", "content": "x" * 8000}]
    budget = await token_budget(long, context_length=4096, answer_tokens=512, share=0.5, count=quarter)
    assert 1400 < budget < 4096 - 512 - 2000
    assert await token_budget(long, context_length=4096, answer_tokens=512, share=0.5, count=silent) == 0
    assert await token_budget(USER, context_length=700, answer_tokens=600, share=0.5, count=no_counter) == 0


def chunk(number: int, size: int = 400) -> Chunk:
    return Chunk(f"chunk {number} ".ljust(size, "x"), {"document_id": f"d{number}", "version": 1, "chunk": 0})


async def test_as_many_chunks_as_fit_best_first_and_numbered_without_gaps() -> None:
    chunks = [chunk(0), chunk(1, 4000), chunk(2)]
    result = await assemble(USER, chunks, [], budget=400, count=quarter)
    assert [entry["document_id"] for entry in result.provenance] == ["d0", "d2"]
    text = result.messages[0]["content"]
    assert "[1] (document_id d0" in text
    assert "[2] (document_id d2" in text
    assert (await assemble(USER, [chunk(0)], [], budget=10, count=quarter)).empty


def summary(text: str = "They chose herons.") -> Chunk:
    of = {"level": 1, "turns": 40, "model": "m", "made_at": "2026-01-02T03:04:05+00:00"}
    return Chunk(text, {"document_id": "~summary/c/1/1", "version": 1, "chunk": 0, "source": "summary", "summary": of})


async def test_summaries_are_introduced_as_such_and_only_where_there_are_any() -> None:
    result = await assemble(USER, [summary(), chunk(0)], [], budget=4000, count=no_counter)
    text = result.messages[0]["content"]
    assert "possibly inexact" in text
    assert "[1] (summary of 40 earlier turns, made 2026-01-02, may be inexact)\nThey chose herons." in text
    assert "[2] (document_id d0" in text
    assert result.provenance[0]["summary"]["level"] == 1
    plain = await assemble(USER, [chunk(0)], [], budget=4000, count=no_counter)
    assert "inexact" not in plain.messages[0]["content"]
    left_out = await assemble(USER, [summary("x" * 4000), chunk(0)], [], budget=500, count=quarter)
    assert "inexact" not in left_out.messages[0]["content"]


async def test_context_joins_the_clients_own_system_message() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    result = await assemble(messages, [chunk(0)], [], budget=4000, count=no_counter)
    assert [message["role"] for message in result.messages] == ["system", "user"]
    assert result.messages[0]["content"].startswith("Be brief.\n\n")
    parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *USER]
    joined = await assemble(parts, [chunk(0)], [], budget=4000, count=no_counter)
    assert joined.messages[0]["content"][1]["type"] == "text"
    assert messages[0]["content"] == "Be brief.", "the request itself is left as it came"


async def test_turns_are_the_latest_without_a_gap_and_none_that_the_client_sends_itself() -> None:
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "x" * 4000},
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "latest"},
    ]
    result = await assemble(USER, [], turns, budget=100, count=quarter)
    assert [message["content"] for message in result.messages] == ["latest", "question"]


# -- requests and settings -------------------------------------------------------------------------------------------


def test_the_question_is_the_last_users_words() -> None:
    parts = [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "this"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": []}]
    request = parse_chat({"model": "m", "messages": messages}, {})
    assert request.question == "what is\nthis"


@pytest.mark.parametrize(
    ("change", "accepts"),
    [({}, True), ({"response_format": {"type": "json_object"}}, False), ({"tool_choice": "required"}, False)],
)
def test_prose_is_no_answer_to_who_asked_for_a_form(change: dict[str, Any], accepts: bool) -> None:
    assert parse_chat({"model": "m", "messages": USER, **change}, {}).accepts_prose is accepts


@pytest.mark.parametrize("name", ["a b", "a\n", "~turn", "x" * 128, "\ud800", "\x00", "", 7, []])
def test_a_conversation_that_pbml_would_refuse(name: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat({"model": "m", "messages": USER, "metadata": {"conversation_id": name}}, {})
    assert (caught.value.status, caught.value.param) == (400, "metadata.conversation_id")


def test_a_refused_header_is_named() -> None:
    for header, value in (("X-DevMentor-Conversation", "a b"), ("X-DevMentor-Watermark", "w7")):
        with pytest.raises(ApiError) as caught:
            parse_chat({"model": "m", "messages": USER}, {header.lower(): value})
        assert (caught.value.status, caught.value.param) == (400, header)


def test_names_that_pbml_takes_are_taken() -> None:
    headers = {"x-devmentor-conversation": "c:1@x", "x-devmentor-watermark": "pg:7"}
    request = parse_chat({"model": "m", "messages": USER}, headers)
    asked = ContextRequest(query="q", token_budget=1, conversation_id=request.conversation, watermark=request.watermark)
    assert (asked.conversation_id, asked.watermark) == ("c:1@x", "pg:7")


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"a": {"url": "http://x", "secondary": "b"}}, "secondary"),
        ({"a": {"url": "http://x", "secondary": "a"}}, "secondary"),
        ({"a": {"url": "http://x", "kind": "embedding"}}, "chat model"),
        ({"a": {"url": "http://x", "knid": "chat"}}, "knid"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(models: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        QwenSettings(models=models, tenants_file="/x")


def test_a_volume_at_which_one_error_is_a_rate_is_refused() -> None:
    models = {"a": {"url": "http://x"}}
    with pytest.raises(ValidationError, match="breaker_min_volume: at least 1000"):
        QwenSettings(models=models, tenants_file="/x", breaker_min_volume=999)
    QwenSettings(models=models, tenants_file="/x", breaker_min_volume=1000)
    QwenSettings(models=models, tenants_file="/x", breaker_min_volume=1, breaker_error_rate=0)
