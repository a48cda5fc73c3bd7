"""Streams that look whole and are not: each is the engine's failure, never an answer to be kept."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from conftest import Answer, StartTier, Tier
from hypothesis import given
from hypothesis import strategies as st
from qwen_doubles import MODEL, SAID, Engine, serving

from devmentor.qwen import sse
from devmentor.qwen.sse import Event

ALLOWED = {"X-DevMentor-On-Break": "continue"}
DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return json.dumps({"id": "c", "created": 1, "model": MODEL, "choices": [choice]}).encode()


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


ROLE = event(chunk({"role": "assistant", "content": ""}))
ONE, TWO = event(chunk({"content": "one "})), event(chunk({"content": "two "}))
END = event(chunk({}, "stop"))
ERROR = b'{"error": {"message": "out of memory", "code": 500}}'


class Script:
    """An engine that streams what it is told, a write for each part; `whole` is its answer that is not streamed."""

    def __init__(self) -> None:
        self.parts: Sequence[bytes] = ()
        self.whole: Any = None
        self.asked = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", self._chat)])
        async with serving(app) as url:
            yield url

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked += body["messages"] != [{"role": "user", "content": "ping"}]
        if not body.get("stream"):
            return web.json_response(self.whole)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in self.parts:
            await response.write(part)
        return response


@pytest_asyncio.fixture
async def script() -> AsyncIterator[Script]:
    yield Script()


@pytest_asyncio.fixture
async def alone(start: StartTier, script: Script) -> AsyncIterator[Tier]:
    """A tier whose only engine follows the script."""
    async with script.serving() as url:
        yield await start(models={MODEL: {"url": url}}, probe_s=60)


@pytest_asyncio.fixture
async def paired(start: StartTier, script: Script) -> AsyncIterator[Tier]:
    """A tier with a secondary that works."""
    async with script.serving() as url, serving(Engine().app) as spare:
        models = {MODEL: {"url": url, "secondary": "spare"}, "spare": {"url": spare}}
        yield await start(models=models, probe_s=60)


def error_code(answer: Answer) -> str:
    last = [line for line in answer.raw.split(b"\n") if line.startswith(b"data: ")][-1]
    assert b"[DONE]" not in answer.raw
    return json.loads(last[6:])["error"]["code"]


BROKEN = {
    "ends before its end": [ROLE, ONE, DONE],
    "role alone": [ROLE, DONE],
    "aborted": [ROLE, ONE, event(chunk({}, "abort")), DONE],
    "aborted with its last word": [ROLE, ONE, event(chunk({"content": "two"}, "abort")), DONE],
    "failed inside the engine": [ROLE, ONE, event(chunk({}, "error")), DONE],
    "one choice of two has no end": [
        ROLE,
        ONE,
        END,
        event(b'{"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": null}]}'),
        DONE,
    ],
    "error as data": [ROLE, ONE, event(ERROR), DONE],
    "error after another member": [ROLE, ONE, event(b'{"object": "error", "error": {"message": "died"}}'), DONE],
    "error of the older flat form": [ROLE, ONE, event(b'{"object": "error", "message": "died", "code": 500}'), DONE],
    "error named before its data": [ROLE, ONE, b"event: error\ndata: " + ERROR + b"\n\n", DONE],
    "error named after its data": [ROLE, ONE, b"data: " + ERROR + b"\nevent: error\n\n", DONE],
    "error named, its data no JSON": [ROLE, ONE, b"event:error\r\ndata: killed\r\n\r\n", DONE],
    "error behind an id": [ROLE, ONE, b"id: 7\ndata: " + ERROR + b"\n\n", DONE],
    "error behind a comment": [ROLE, ONE, b": late\ndata: " + ERROR + b"\n\n", DONE],
    "error in two lines": [ROLE, ONE, b'data: {"error":\ndata: {"message": "died"}}\n\n', DONE],
    "error in llama.cpp's own field": [ROLE, ONE, b"error: " + ERROR + b"\n\n"],
    "no JSON": [ROLE, ONE, event(b"<html>"), DONE],
    "no object": [ROLE, ONE, event(b"[1]"), DONE],
    "choices that are none": [ROLE, ONE, event(b'{"choices": [1]}'), DONE],
}
BROKEN_AT_ONCE = {
    "done alone": [DONE],
    "a comment and done": [b": hello\n\n", DONE],
    "aborted at once": [event(chunk({}, "abort")), DONE],
    "error behind an id": [b"id: 1\nevent: error\ndata: " + ERROR + b"\n\n", DONE],
}


def named(streams: dict[str, list[bytes]]) -> Any:
    return pytest.mark.parametrize("parts", streams.values(), ids=streams.keys())


@named(BROKEN)
async def test_a_stream_that_is_not_whole_ends_with_an_error_and_is_not_kept(
    alone: Tier, script: Script, parts: list[bytes]
) -> None:
    script.parts = parts
    for asked in (1, 2):
        assert error_code(await alone.chat(stream=True)) == "engine_stream_broken"
        assert script.asked == asked, "nothing was kept of the first one"
        await alone.settle()


@named(BROKEN_AT_ONCE)
async def test_what_breaks_before_a_word_is_no_answer_at_all(alone: Tier, script: Script, parts: list[bytes]) -> None:
    script.parts = parts
    for asked in (1, 2):
        answer = await alone.chat(stream=True)
        assert (answer.status, answer.body["error"]["code"]) == (503, "engine_unavailable")
        assert script.asked == asked
        await alone.settle()


@named({name: parts for name, parts in BROKEN.items() if name not in ("role alone", "one choice of two has no end")})
async def test_it_goes_on_at_the_secondary_where_allowed(paired: Tier, script: Script, parts: list[bytes]) -> None:
    script.parts = parts
    answer = await paired.chat(stream=True, headers=ALLOWED)
    assert answer.streamed_text == "one " + SAID
    assert answer.raw.endswith(b": served-by=engine,secondary\n\ndata: [DONE]\n\n")


@named(BROKEN_AT_ONCE)
async def test_the_secondary_answers_what_broke_at_once(paired: Tier, script: Script, parts: list[bytes]) -> None:
    script.parts = parts
    answer = await paired.chat(stream=True)
    assert (answer.served_by, answer.streamed_text) == ("secondary", SAID)


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_a_whole_answer_that_was_aborted_is_none(alone: Tier, paired: Tier, script: Script, reason: str) -> None:
    message = {"role": "assistant", "content": "one"}
    script.whole = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    assert (await alone.chat()).status == 503
    assert (await paired.chat()).served_by == "secondary"


async def test_five_of_them_open_the_breaker(alone: Tier, script: Script) -> None:
    script.parts = [DONE]
    for _ in range(6):
        await alone.chat(stream=True)
    assert script.asked == 5


async def test_fields_that_an_event_may_have_beside_its_data_hurt_no_answer(alone: Tier, script: Script) -> None:
    script.parts = [
        b"\xef\xbb\xbf: hello\r\n\r\nid: 1\r\nevent: message\r\nretry: 5\r\ndata: "
        + chunk({"content": "one "})
        + b"\r",
        b"\n\r\n" + TWO,
        b"data\n\nwhatever: x\n\n",
        b'data:{"choices":\ndata: [{"index":0,"delta":{},"finish_reason":"stop"}],\ndata:"error":null}\n\n',
        DONE,
    ]
    assert (await alone.chat(stream=True)).streamed_text == "one two "
    await alone.settle()
    assert (await alone.chat()).text == "one two "
    assert script.asked == 1


# -- the parser, by the specification's own examples (WHATWG HTML, 9.2.6) and by any cut of the network ----------------


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event(b"YHOO\n+2\n10")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [Event(b"first event"), Event(b"second event"), Event(b" third event")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [Event(b""), Event(b"\n")]),
        (b"event: a\ndata: 1\n\ndata: 2\n\n", [Event(b"1", "a"), Event(b"2")]),
        (b"event: a\n\ndata: 2\n\n", [Event(b"2")]),
        (b"data: a\r\rdata: b\r\n\r\n", [Event(b"a"), Event(b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
        (b"data: never ended\n", []),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_events_are_read_by_the_specification(stream: bytes, events: list[Event], size: int) -> None:
    parser = sse.Parser()
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [event for part in parts for event in parser.feed(part)] == events


LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b"event: error", b"id: 1", b": x", b"", b"error: c", b"nothing"]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.data())
def test_where_the_network_cuts_a_stream_does_not_matter(lines: list[tuple[bytes, bytes]], data: Any) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    whole, cut = sse.Parser(), sse.Parser()
    parts = [stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])]
    assert [event for part in parts for event in cut.feed(part)] == whole.feed(stream)
