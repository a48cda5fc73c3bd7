"""The clients of `make chaos-qwen` against a whole tier: each way that an answer ends has its own name."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from conftest import KEYS, StartTier, Tier
from qwen_doubles import MODEL, Engine, Pbml, serving

from lab.errors import LabError
from tests.chaos.qwen import client, questions, report, rounds
from tests.chaos.qwen import run as chaos_run
from tests.chaos.qwen import seen as s
from tests.chaos.qwen.checker import Moments, judge
from tests.chaos.qwen.expect import EXPECTED
from tests.chaos.qwen.faults import Fault, Scene
from tests.chaos.qwen.questions import Ask
from tests.chaos.qwen.seen import STREAM, WHOLE, Seen


def one(kind: str, limit_s: float = 5.0, **headers: str) -> Ask:
    body = {"messages": [{"role": "user", "content": f"Who is there at {time.monotonic()}?"}], "max_tokens": 8}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Ask(kind, body | ({"stream": True} if kind == STREAM else {}), named, limit_s)


async def sent(url: str, ask: Ask, key: str = KEYS["lab"]) -> Seen:
    async with client.connection(url, "", key) as connection:
        return await client.send(connection, 1, ask, MODEL)


@pytest.mark.parametrize("kind", [WHOLE, STREAM])
async def test_an_answer_says_what_served_it(start: StartTier, kind: str) -> None:
    tier = await start(probe_s=60)
    found = await sent(tier.url, one(kind))
    assert (found.outcome, found.status, found.served_by, found.cache) == (s.OK, 200, "engine", "miss")
    assert (found.context, found.instance) == ("none", "here")
    assert found.first_byte_s is not None
    assert found.first_byte_s <= found.total_s


async def test_a_refusal_has_its_code(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    assert (await sent(tier.url, one(WHOLE), key="wrong")).outcome == "401 invalid_api_key"
    engine.mode = "error"
    for kind in (WHOLE, STREAM):
        found = await sent(tier.url, one(kind))
        assert (found.outcome, found.retry_after) == ("503 engine_unavailable", True)
    engine.mode = "hang"
    found = await sent(tier.url, one(WHOLE, X_DevMentor_Deadline_Ms="200"))
    assert (found.outcome, found.status, found.retry_after) == ("429 deadline_exceeded", 429, True)


async def test_a_stream_that_breaks_ends_with_an_error_event(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60)
    engine.mode = "break"
    assert (await sent(tier.url, one(STREAM))).outcome == "event engine_stream_broken"


async def test_a_late_stream_is_served_by_what_its_comment_says(start: StartTier, engine: Engine) -> None:
    tier = await start(probe_s=60, ping_s=0.05)
    engine.mode = "hang"
    asking = asyncio.create_task(sent(tier.url, one(STREAM)))
    await asyncio.sleep(0.3)
    engine.release.set()
    found = await asking
    assert (found.outcome, found.served_by, found.cache, found.context) == (s.OK, "engine", "miss", "none")
    engine.release.clear()
    late = await sent(tier.url, one(STREAM, X_DevMentor_Deadline_Ms="300"))
    assert (late.outcome, late.served_by) == ("event deadline_exceeded", "pending")


async def test_what_hangs_is_given_up(start: StartTier, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GIVE_UP_S", 0.2)
    tier = await start(probe_s=60)
    engine.mode = "hang"
    found = await sent(tier.url, one(WHOLE, limit_s=0.1))
    assert found.outcome == s.HUNG
    assert found.total_s > found.limit_s


async def test_nobody_there() -> None:
    assert (await sent("http://127.0.0.1:9", one(WHOLE))).outcome == s.CONNECT


def pretended(mode: str) -> web.Application:
    """A gateway that ends answers as none of ours should."""

    async def chat(request: web.Request) -> web.StreamResponse:
        if mode == "html":
            return web.Response(status=502, text="<html>", content_type="text/html")
        if mode == "empty":
            return web.json_response({})
        if mode == "gone":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices":[]}\n\n')
        if mode == "cut":
            assert request.transport is not None
            request.transport.abort()
        if mode == "silent":
            await asyncio.sleep(5)
        if mode == "after":
            await response.write(b'data: {"error":{"code":"x"}}\n\ndata: [DONE]\n\n')
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    return app


@pytest.mark.parametrize(
    ("mode", "kind", "outcome"),
    [
        ("html", WHOLE, "502 ?"),
        ("empty", WHOLE, s.UNREADABLE),
        ("gone", WHOLE, s.CUT),
        ("cut", STREAM, s.CUT_STREAM),
        ("ends", STREAM, s.UNFINISHED),
        ("after", STREAM, s.UNREADABLE),
        ("silent", STREAM, s.SILENCE),
    ],
)
async def test_bad_ends_have_names_of_their_own(
    mode: str, kind: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "READ_S", 0.5)
    async with serving(pretended(mode)) as url:
        found = await sent(url, one(kind))
    assert found.outcome == outcome


async def under_load(
    tier: Tier, seconds: float, rate: float, disturb: str, engine: Engine
) -> tuple[client.Load, Moments]:
    load = client.Load(tier.url, "", KEYS["lab"], MODEL, rate, lambda number: questions.ask("test", 1, number))
    load.start()
    await asyncio.sleep(seconds)
    began, engine.mode = time.monotonic(), disturb
    await asyncio.sleep(seconds)
    undone, engine.mode = time.monotonic(), "ok"
    await asyncio.sleep(seconds)
    until = time.monotonic()
    await asyncio.to_thread(load.stop)
    return load, Moments(began, undone, until)


async def test_a_load_is_judged_as_its_tier_was(
    start: StartTier, engine: Engine, pbml: Pbml, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the clients to the verdict, a fault that is what it is called, and the same called nothing."""
    monkeypatch.setattr("tests.chaos.qwen.checker.CALM_S", 0.5)
    tier = await start(probe_s=0.1, breaker_open_s=0.2, pbml_urls=[urls["pbml"]])
    load, moments = await under_load(tier, 1.0, 40, "error", engine)
    due = 40 * (moments.until - load.seen[0].start)
    assert due / 2 < len(load.seen) <= due + 10
    assert {each.kind for each in load.seen} == {WHOLE, STREAM}
    as_named = judge(EXPECTED["engines_dead"], load.seen, moments)
    assert as_named.violations == []
    assert as_named.errors["503 engine_unavailable"] > 2
    as_nothing = judge(EXPECTED["none"], load.seen, moments)
    assert sum(line.startswith("unexplained") for line in as_nothing.violations) == sum(as_named.errors.values())


async def test_a_round_from_its_beginning_to_its_verdict_on_a_pretended_lab(
    start: StartTier, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tier and the clients are real; hosts are not, and the fault is the engine double's."""
    monkeypatch.setattr("tests.chaos.qwen.rounds.BEFORE_S", 3.0)
    monkeypatch.setattr("tests.chaos.qwen.checker.CALM_S", 1.0)
    monkeypatch.setattr("tests.chaos.qwen.rounds.save_evidence", lambda _deployed, folder: folder.mkdir(exist_ok=True))
    tier = await start(probe_s=0.1, breaker_open_s=0.2)
    deployed: Any = SimpleNamespace(
        base_url=tier.url, client=SimpleNamespace(ca="", key=KEYS["lab"]), model=lambda: MODEL, settled=lambda: ""
    )
    done: list[str] = []

    def turn(mode: str) -> Callable[[Scene], None]:
        def act(_scene: Scene) -> None:
            engine.mode = mode
            done.append(mode)

        return act

    def fault(name: str) -> Fault:
        return Fault(name, "the engine errs", turn("error"), turn("ok"), hold=1.0)

    found = await asyncio.to_thread(rounds.play, deployed, fault("engines_dead"), 1, 1, 20.0, tmp_path / "a")
    assert done == ["error", "ok"]
    assert found["problems"] == []
    assert found["errors"]["503 engine_unavailable"] > 0
    assert found["recovery_s"] is not None
    assert len(s.read(tmp_path / "a" / "requests.jsonl")) == found["requests"]
    assert sum(second["requests"] for second in found["timeline"]) == found["requests"]
    assert chaos_run.line({"commit": "abc", **found}).startswith("engines_dead    #1: ")
    assert "`engines_dead`: the engine errs | 1 |" in report.table([{"commit": "abc", **found}])
    unexplained = await asyncio.to_thread(rounds.play, deployed, fault("valkey_all"), 1, 1, 20.0, tmp_path / "b")
    assert any(line.startswith("unexplained: ") for line in unexplained["problems"])


async def test_a_fault_that_fails_is_undone_and_told_on_a_pretended_lab(
    start: StartTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.chaos.qwen.rounds.BEFORE_S", 3.0)
    monkeypatch.setattr("tests.chaos.qwen.checker.CALM_S", 0.5)
    monkeypatch.setattr("tests.chaos.qwen.rounds.save_evidence", lambda *_: None)
    tier = await start(probe_s=60)
    deployed: Any = SimpleNamespace(
        base_url=tier.url, client=SimpleNamespace(ca="", key=KEYS["lab"]), model=lambda: MODEL, settled=lambda: ""
    )
    done: list[str] = []

    def fails(_scene: Scene) -> None:
        raise LabError("the host is gone", "start it")

    fault = Fault("valkey_one", "text", fails, lambda _scene: done.append("undone"))
    found = await asyncio.to_thread(rounds.play, deployed, fault, 1, 1, 20.0, tmp_path)
    assert done == ["undone"]
    assert any(line.startswith("the fault itself failed: the host is gone") for line in found["problems"])

    def prepared_badly(_scene: Scene) -> None:
        raise LabError("no such program", "install it")

    fault = Fault("valkey_one", "text", fails, lambda _scene: done.append("undone again"), prepare=prepared_badly)
    with pytest.raises(LabError, match="no such program"):
        await asyncio.to_thread(rounds.play, deployed, fault, 1, 1, 20.0, tmp_path)
    assert done == ["undone", "undone again"]


async def test_the_mix_has_every_kind_of_request() -> None:
    asks = [questions.ask("run", 3, number) for number in range(400)]
    assert asks == [questions.ask("run", 3, number) for number in range(400)]
    texts = [each.body["messages"][0]["content"] for each in asks]
    assert 300 < len(set(texts)) < 350, "most are new, some are repeated"
    for header, least in (
        ("X-DevMentor-Conversation", 30),
        ("X-DevMentor-On-Break", 40),
        ("X-DevMentor-Deadline-Ms", 150),
    ):
        assert sum(header in each.headers for each in asks) > least
    assert sum(each.kind == STREAM for each in asks) > 150
    assert sum(each.body["max_tokens"] > 60 for each in asks) > 20
