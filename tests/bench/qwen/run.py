"""`make bench-qwen`: what QWEN adds to a request, beside LiteLLM and the bare upstream, in one run.

    python -m tests.bench.qwen.run [--rate 50] [--seconds 30] [--systems qwen,litellm]

The upstream is pretended (pretended_upstream.py): it answers at once, so what is measured is the gateway. Rounds are
interleaved between the systems. The result goes to .cache/bench/qwen.json; report.py writes docs/qwen-bench.md from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

from tests.bench.qwen import load, report
from tests.bench.qwen.pretended_upstream import MODEL, TEXT
from tests.bench.qwen.systems import KEY, Running, everything
from tests.chaos.postgres.run import commit
from tools.runs import ROOT

RESULT = ROOT / ".cache" / "bench" / "qwen.json"
KINDS = ("fresh", "first_token", "cached")
_CONNECTIONS = 32  # of the saturating load


class Client:
    """Questions to one system: each new, or always the same."""

    def __init__(self, session: aiohttp.ClientSession, system: Running) -> None:
        self._session = session
        self._rest: set[asyncio.Task[None]] = set()
        self._url = f"{system.url}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {KEY}"}
        self._sent = 0
        self.broken = 0  # streams without their end

    async def ask(self, question: str) -> bool:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
        try:
            async with self._session.post(self._url, json=body, headers=self._headers) as answer:
                return TEXT.encode() in await answer.read() and answer.status == 200
        except aiohttp.ClientError:
            return False

    async def fresh(self, _number: int) -> bool:
        return await self.ask(self._question())

    def _question(self) -> str:
        self._sent += 1
        return f"Question {os.getpid()} {self._sent} {time.time_ns()}?"

    async def first_token(self, _number: int) -> bool:
        """Until the first word of a streamed answer; the rest is read after that."""
        messages = [{"role": "user", "content": self._question()}]
        body = {"model": MODEL, "messages": messages, "stream": True}
        answer = await self._session.post(self._url, json=body, headers=self._headers)
        word = json.dumps(TEXT.split(" ")[0]).encode()[:-1]
        async for line in answer.content:
            if word in line:
                task = asyncio.create_task(self._read_on(answer))
                self._rest.add(task)
                task.add_done_callback(self._rest.discard)
                return answer.status == 200
        answer.release()
        return False

    async def _read_on(self, answer: aiohttp.ClientResponse) -> None:
        try:
            whole = b"[DONE]" in await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            whole = False
        self.broken += not whole

    async def same(self, _number: int) -> bool:
        return await self.ask("The same question as ever?")


async def saturate(client: Client, system: Running, seconds: float) -> dict[str, float]:
    """As many requests as the system takes, from a fixed number of connections; per processor second of its own."""
    cpu, begin, right = system.cpu_s(), time.perf_counter(), 0

    async def worker() -> int:
        done = 0
        while time.perf_counter() - begin < seconds:
            done += await client.fresh(0)
        return done

    right = sum(await asyncio.gather(*(worker() for _ in range(_CONNECTIONS))))
    took, used = time.perf_counter() - begin, system.cpu_s() - cpu
    return {"per_second": right / took, "per_core_second": right / used if used else 0.0, "cpu_s": used}


def summary(outcomes: Sequence[load.Outcome], broken: int = 0) -> dict[str, Any]:
    latencies = [latency for outcome in outcomes for latency in outcome.latencies_s]
    return {
        "p50_ms": load.percentile(latencies, 0.5) * 1000,
        "p99_ms": load.percentile(latencies, 0.99) * 1000,
        "right": len(latencies),
        "failed": sum(outcome.failed for outcome in outcomes) + broken,
        "generator_behind_ms": max(outcome.behind_s for outcome in outcomes) * 1000,
    }


async def measure(systems: Sequence[Running], rate: float, seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        clients = {system.name: Client(session, system) for system in systems}
        fresh: dict[str, list[load.Outcome]] = {system.name: [] for system in systems}
        streams: dict[str, list[load.Outcome]] = {system.name: [] for system in systems}
        cached: dict[str, list[load.Outcome]] = {system.name: [] for system in systems}
        memory: dict[str, list[float]] = {system.name: [] for system in systems}
        for system in systems:
            await load.run(clients[system.name].fresh, rate, min(3.0, seconds))
        for _ in range(rounds):
            for system in systems:
                client = clients[system.name]
                fresh[system.name].append(await load.run(client.fresh, rate, seconds / rounds))
                streams[system.name].append(await load.run(client.first_token, rate, seconds / rounds))
                await client.same(0)
                cached[system.name].append(await load.run(client.same, rate, seconds / rounds))
                memory[system.name].append(system.memory_mib())
        for system in systems:
            full = await saturate(clients[system.name], system, seconds / rounds)
            memory[system.name].append(system.memory_mib())
            found[system.name] = {
                "fresh": summary(fresh[system.name]),
                "first_token": summary(streams[system.name], broken=clients[system.name].broken),
                "cached": summary(cached[system.name]),
                "saturated": full,
                "memory_mib": memory[system.name],
            }
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-qwen", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second of the latency rounds")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each kind of load, all rounds together")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--systems", default="qwen,litellm")
    parser.add_argument("--only-look", action="store_true", help="print the table, write nothing")
    options = parser.parse_args(arguments)
    names = options.systems.split(",")
    if unknown := sorted(set(names) - {"qwen", "litellm"}):
        parser.error(f"unknown system {', '.join(unknown)}; known: qwen, litellm")
    load_before = os.getloadavg()[0]
    with everything(names) as systems:
        found = asyncio.run(measure(systems, options.rate, options.seconds, options.rounds))
    machine = {"commit": commit(), "cores": os.cpu_count(), "load_before": load_before}
    result = {**machine, "rate": options.rate, "seconds": options.seconds, "systems": found}
    print(report.table(result))
    if not options.only_look:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        report.write(RESULT)
    return 1 if any(system[kind]["failed"] for system in found.values() for kind in KINDS) else 0


if __name__ == "__main__":
    sys.exit(main())
