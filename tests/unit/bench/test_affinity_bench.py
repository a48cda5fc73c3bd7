"""The affinity bench: what it sends, what it reads of an answer, and figures that are worth nothing are called so."""

import argparse
import asyncio
import json
import math
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from tests.bench.affinity import report, run
from tests.bench.affinity.conversations import ARMS, BODY, HEADER, Conversation, counts
from tests.chaos.qwen.client import connection


class PretendedGateway:
    """Answers as QWEN hands on llama.cpp's streams; a conversation in the header stays, the others go round."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.bodies: list[dict[str, Any]] = []
        self.round = 0
        self.app = web.Application()
        self.app.router.add_post("/v1/chat/completions", self.chat)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.mode == "error":
            return web.json_response({"error": {"code": "engine_unavailable"}}, status=503)
        kept = request.headers.get("X-DevMentor-Conversation")
        self.round += kept is None
        headers = {
            "Content-Type": "text/event-stream",
            "X-DevMentor-Served-By": "degraded" if self.mode == "degraded" else "engine",
            "X-DevMentor-Instance": "lab1" if kept else f"lab{self.round % 3}",
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)

        async def send(chunk: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        await send({"choices": [{"delta": {"role": "assistant", "content": None}}]})
        await asyncio.sleep(0.1)
        await send({"choices": [{"delta": {"content": "words"}}]})
        if self.mode == "broken":
            await send({"error": {"code": "engine_stream_broken"}})
            return response
        prompt = 100 * len(body["messages"])
        usage = {"prompt_tokens": prompt, "prompt_tokens_details": {"cached_tokens": prompt - 40}}
        await send({"choices": [], "usage": usage, "timings": {"prompt_n": 40}})
        if self.mode != "unfinished":
            await response.write(b"data: [DONE]\n\n")
        return response


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[tuple[PretendedGateway, str]]:
    found = PretendedGateway()
    runner = web.AppRunner(found.app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield found, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def conversation(arm: str, seed: str = "a") -> Conversation:
    return Conversation(arm, f"bench-{seed}", seed, 20)


def test_both_arms_ask_for_the_same_and_differ_in_what_the_gateway_sees() -> None:
    asked = {}
    for arm in ARMS:
        each = conversation(arm)
        each.next_question(1)
        asked[arm] = each.request("tiny", 16)
    in_header, in_body = asked[HEADER], asked[BODY]
    assert in_header[1].pop("X-DevMentor-Conversation") == in_body[0].pop("metadata")["conversation_id"]
    assert in_header == in_body
    assert in_header[1] == {"X-DevMentor-Context": "none", "Cache-Control": "no-store"}


def test_a_prompt_grows_and_its_beginning_stays() -> None:
    each = conversation(HEADER)
    first = list(each.next_question(1))
    each.answered("an answer")
    second = list(each.next_question(2))
    assert second[:1] == first
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert conversation(HEADER).next_question(1) == first
    assert conversation(HEADER, "b").next_question(1) != first


@pytest.mark.parametrize(
    ("usage", "timings", "expected"),
    [
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 6}}, {"prompt_n": 3}, (9, 6, 3)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 6}}, None, (9, 6, 3)),
        ({"prompt_tokens": 9}, None, (9, None, None)),
        ({}, None, (None, None, None)),
    ],
)
def test_tokens_are_what_the_engine_says(usage: dict[str, Any], timings: Any, expected: Any) -> None:
    assert counts(usage, timings) == expected


async def test_a_turn_has_its_first_token_its_instance_and_its_tokens(gateway: tuple[PretendedGateway, str]) -> None:
    pretended, url = gateway
    async with connection(url, "", "key") as client:
        turns = await run.talk(client, conversation(HEADER), 3, "tiny")
        others = await run.talk(client, conversation(BODY), 3, "tiny")
    assert [turn.error for turn in (*turns, *others)] == [""] * 6
    assert [(turn.prompt, turn.cached, turn.evaluated) for turn in turns] == [
        (100, 60, 40),
        (300, 260, 40),
        (500, 460, 40),
    ]
    assert {turn.instance for turn in turns} == {"lab1"}
    assert len({turn.instance for turn in others}) == 3
    assert all(turn.ttft_s is not None and 0.1 <= turn.ttft_s <= turn.total_s for turn in turns)
    assert pretended.bodies[2]["messages"][1] == {"role": "assistant", "content": "words"}


@pytest.mark.parametrize("mode", ["error", "degraded", "broken", "unfinished"])
async def test_a_turn_that_is_not_the_engines_whole_answer_is_an_error(
    gateway: tuple[PretendedGateway, str], mode: str
) -> None:
    pretended, url = gateway
    pretended.mode = mode
    async with connection(url, "", "key") as client:
        turns = await run.talk(client, conversation(HEADER), 3, "tiny")
    assert len(turns) == 1
    assert turns[0].error


async def test_nobody_there_is_an_error() -> None:
    async with connection("http://127.0.0.1:9", "", "key") as client:
        assert not (await run.take_turn(client, conversation(HEADER), 1, "tiny")).ok


async def test_both_arms_take_turns_on_a_pretended_lab(gateway: tuple[PretendedGateway, str]) -> None:
    _, url = gateway
    deployed: Any = SimpleNamespace(
        base_url=url, client=SimpleNamespace(ca="", key="key"), model=lambda: "tiny", settled=lambda: "",
        hosts=lambda _group: [],
    )  # fmt: skip
    options = argparse.Namespace(rounds=2, conversations=2, turns=3, words=20)
    parts = await asyncio.to_thread(run.measure, deployed, options)
    assert [(part["round"], part["arm"]) for part in parts] == [(1, HEADER), (1, BODY), (2, BODY), (2, HEADER)]
    assert [len(part["turns"]) for part in parts] == [6] * 4
    told = {**vars(options), "commit": "abc", "cores": 2, "instances": 3, "parts": parts}
    assert report.problems(told) == []
    assert "not known" in report.table(told), "hosts that do not say what they evaluated are not counted"


def test_counters_that_began_anew_say_nothing() -> None:
    assert run.grown({"a": 1.0, "b": 2.0}, {"a": 5.0, "b": 2.0}) == 4.0
    assert run.grown({"a": 1.0}, {"a": 0.0}) is None
    assert run.grown({"a": 1.0, "b": 2.0}, {"a": 5.0}) is None
    assert run.grown({}, {}) is None
    assert run.EVALUATED.findall("# TYPE x\nllamacpp:prompt_tokens_total 8051\n") == ["8051"]


def turn(arm: str, name: str, number: int, instance: str, evaluated: int | None = 40, **more: Any) -> dict[str, Any]:
    return {
        "arm": arm, "conversation": name, "number": number, "instance": instance, "ttft_s": number / 10, "total_s": 1.0,
        "prompt": 100 * number, "cached": 0, "evaluated": evaluated, "error": "", **more,
    }  # fmt: skip


def result(kept: list[dict[str, Any]], dealt: list[dict[str, Any]]) -> dict[str, Any]:
    def part(arm: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
        return {"arm": arm, "round": 1, "load": 1.5, "counted": 500.0, "turns": turns}

    told = {"commit": "abc", "cores": 2, "instances": 3, "rounds": 1, "conversations": 1, "turns": 3, "words": 20}
    return {**told, "parts": [part(HEADER, kept), part(BODY, dealt)]}


def good() -> dict[str, Any]:
    kept = [turn(HEADER, "a", n, "lab1") for n in (1, 2, 3)]
    return result(kept, [turn(BODY, "b", n, f"lab{n}", 80 * n) for n in (1, 2, 3)])


def test_the_table_leaves_first_turns_out() -> None:
    found = good()
    assert report.problems(found) == []
    each = report.row(found, HEADER)
    assert (each["turns"], each["prompt"], each["evaluated"], each["share"]) == (2, 500, 80, 0.16)
    assert (each["p50_ms"], each["p95_ms"]) == (200.0, 300.0)
    assert (each["instances"], each["moved"]) == (1.0, 0.0)
    assert report.row(found, BODY)["moved"] == 1.0
    text = report.table(found)
    assert "| round robin | 2 | 200 | 300 | 500 | 400 | 80.0% | 500 | 3.00 | 100% | 0 |" in text
    assert "Not to be used" not in text


def test_figures_that_are_worth_nothing_are_called_so() -> None:
    failed = good()
    failed["parts"][0]["turns"][2]["error"] = "status 503"
    assert report.problems(failed) == ["header: 1 turns failed"]
    assert "Not to be used: header: 1 turns failed." in report.table(failed)
    untold = good()
    untold["parts"][1]["turns"][1]["evaluated"] = None
    assert report.problems(untold) == ["body: of 1 turns the engine did not say its tokens"]
    stuck = result(good()["parts"][0]["turns"], [turn(BODY, "b", n, "lab1") for n in (1, 2, 3)])
    assert report.problems(stuck) == ["body: no conversation moved, so this was no round robin"]
    nothing = result([], [])
    assert len(report.problems(nothing)) == 2
    assert math.isnan(report.row(nothing, HEADER)["share"])
    assert "Not to be used" in report.table(nothing)
