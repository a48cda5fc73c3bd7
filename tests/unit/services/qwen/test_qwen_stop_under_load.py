"""A rolling update's moment: an instance is taken out at the balancer and stopped as systemd does it, under streams.

Two real processes; engine, PBML and balancer are doubles.
"""

import asyncio
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from qwen_doubles import MODEL, SAID, WORDS, Engine, Pbml

SRC = Path(__file__).resolve().parents[4] / "services" / "src"
KEY = "a key"
CLIENTS = 6


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Instance:
    """`devmentor-qwen serve` as a process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, url: str) -> None:
        self.name = name
        self.process = process
        self.url = url

    async def stop(self) -> int:
        """As systemd does; the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 60)


@asynccontextmanager
async def instance(name: str, directory: Path, urls: dict[str, str]) -> AsyncIterator[Instance]:
    """A process whose /ready has answered."""
    tenants, log, port = directory / "tenants.json", directory / f"{name}.log", free_port()
    tenants.write_text(json.dumps([{"tenant": "t", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
    environment = {
        "PYTHONPATH": str(SRC),
        "QWEN_PORT": str(port),
        "QWEN_INSTANCE": name,
        "QWEN_MODELS": json.dumps({MODEL: {"url": urls["engine"]}}),
        "QWEN_TENANTS_FILE": str(tenants),
        "QWEN_PBML_URLS": urls["pbml"],
        "QWEN_DRAIN_DELAY_S": "0.5",
        "QWEN_SHUTDOWN_GRACE_S": "30",
    }
    command = [sys.executable, "-m", "devmentor.qwen", "serve"]
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    made = Instance(name, process, f"http://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(120), aiohttp.ClientSession() as session:
            while not await is_ready(session, made.url):
                assert process.returncode is None, log.read_text()[-3000:]
                await asyncio.sleep(0.2)
        yield made
    finally:
        await made.stop()


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


class Load:
    """Clients that stream one answer after the other; `serving` are the instances that the balancer sends to."""

    def __init__(self, session: aiohttp.ClientSession, serving: list[Instance]) -> None:
        self._session = session
        self.serving = serving
        self.ended = asyncio.Event()
        self.numbers = itertools.count()
        self.under_way: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []

    async def client(self) -> None:
        while not self.ended.is_set():
            number = next(self.numbers)
            chosen = self.serving[number % len(self.serving)]
            self.under_way[chosen.name] += 1
            try:
                said = await self._stream(chosen.url, number)
                if said == SAID:
                    self.answered[chosen.name] += 1
                else:
                    self.failed.append(f"{chosen.name}: {said!r}")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.failed.append(f"{chosen.name}: {error!r}")
            self.under_way[chosen.name] -= 1

    async def _stream(self, url: str, number: int) -> str:
        """What a stream said, or what it ended with where that is not [DONE]."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}], "stream": True}
        headers = {"Authorization": f"Bearer {KEY}", "X-DevMentor-Conversation": f"c{number}"}
        async with self._session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            text = (await answer.read()).decode()
        data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
        if answer.status != 200 or data[-1:] != ["[DONE]"]:
            return f"{answer.status} {text[-200:]}"
        parts = [choice["delta"].get("content") or "" for line in data[:-1] for choice in json.loads(line)["choices"]]
        return "".join(parts)

    async def reach(self, name: str, answers: int) -> None:
        """Until an instance has given so many more answers."""
        wanted = self.answered[name] + answers
        async with asyncio.timeout(120):
            while self.answered[name] < wanted and not self.failed:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_streams_end_and_turns_are_written_where_an_instance_is_taken_out_and_stopped(
    tmp_path: Path, engine: Engine, pbml: Pbml, urls: dict[str, str]
) -> None:
    engine.pace = 2 / len(WORDS)
    async with (
        instance("main", tmp_path, urls) as main,
        instance("main-surge", tmp_path, urls) as stand_in,
        aiohttp.ClientSession() as session,
    ):
        load = Load(session, [main])
        clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
        await load.reach(main.name, CLIENTS)
        load.serving.append(stand_in)
        await load.reach(stand_in.name, 2)
        load.serving.remove(main)
        streaming = load.under_way[main.name]
        status = await main.stop()
        await load.reach(stand_in.name, CLIENTS)
        load.ended.set()
        await asyncio.gather(*clients)
        assert load.failed == []
        assert streaming > 0, "the test is of streams that are under way"
        assert status in (0, -signal.SIGTERM)
        await stand_in.stop()
    keys = [key for _turn, key in pbml.written]
    assert len(keys) == len(set(keys)) == 2 * sum(load.answered.values())
