"""The pretended engine that stands before the real one: it hands on everything, until it is told to err."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio
from aiohttp import web

from tests.chaos.qwen import faults

CHAT = "/v1/chat/completions"


class Upstream:
    """What stands for the engine here."""

    def __init__(self) -> None:
        self.left = 0
        self.app = web.Application()
        self.app.router.add_post(CHAT, self.chat)
        self.app.router.add_get("/slots", self.slots)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        if body.get("endless"):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.left += 1
                raise
        await response.write(b"data: [DONE]\n\n")
        return response

    async def slots(self, _request: web.Request) -> web.Response:
        return web.json_response([{"id": 0}])


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, int]]:
    """It, and its port."""
    found = Upstream()
    runner = web.AppRunner(found.app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield found, runner.addresses[0][1]
    await runner.cleanup()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> tuple[int, bytes]:
    async with session.post(url + CHAT, json={"number": number, "text": "x" * 200_000}) as answer:
        return answer.status, await answer.read()


async def test_each_nth_chat_fails_once_it_is_armed_and_it_tells_how_many(upstream: tuple[Upstream, int]) -> None:
    _, engine_port = upstream
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(faults.PROXY), str(port), str(engine_port), "3", "4", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"listening\n"
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        for number in range(5):
            status, body = await ask(session, url, number)
            assert status == 200
            assert body.endswith(b"data: [DONE]\n\n")
            assert json.loads(body.split(b"\n")[0][6:])["number"] == number
        process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(0.1)
        statuses = []
        for number in range(12):
            statuses.append((await ask(session, url, number))[0])
            async with session.get(url + "/slots") as other:
                assert other.status == 200, "only chats fail"
        assert [n for n, status in enumerate(statuses, 1) if status == 500] == [3, 7, 11]
    process.terminate()
    assert await process.stdout.read() == b"errors 3\n"
    assert await process.wait() == 0


async def test_a_client_that_leaves_ends_the_engines_work(upstream: tuple[Upstream, int]) -> None:
    engine, engine_port = upstream
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(faults.PROXY), str(port), str(engine_port), "1", "500", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        async with aiohttp.ClientSession() as session:
            async with session.post(f"http://127.0.0.1:{port}{CHAT}", json={"endless": True}) as answer:
                await answer.content.readany()
                answer.close()
            for _ in range(100):
                if engine.left:
                    break
                await asyncio.sleep(0.02)
        assert engine.left == 1
    finally:
        process.terminate()
        await process.wait()


def test_it_needs_nothing_but_python() -> None:
    text = Path(faults.PROXY).read_text()
    assert {line for line in text.splitlines() if line.startswith(("import ", "from "))} == {
        "import asyncio",
        "import signal",
        "import sys",
    }
