"""Ingest: how fast it is acknowledged and searchable, by PBML, by the peer and by the floor, in turns."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.pbml.client import CHUNK_CHARS, FLOOR, Floor, Pbml
from tests.bench.pbml.corpus import Text
from tests.bench.pbml.stack import Stack, key_of
from tests.bench.pbml.vectors import cut
from tests.bench.qwen import load
from tests.bench.qwen.systems import Running
from tools.runs import ROOT

HERE = Path(__file__).parent
PEER = ROOT / ".cache" / "bench" / "mem0"
TENANT = "bench"
_BATCH_SIZE = re.compile(r'^pbml_batch_size_(count|sum)\{call="embed"\} (\S+)', re.MULTILINE)
_INDEXED_WITHIN_S = 1800


def install_peer() -> Path:
    """mem0 in an environment of its own, by hashes; its Python. Raises CalledProcessError."""
    lock = HERE / "mem0.lock"
    stamp, wanted = PEER / "lock.sha256", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run(["uv", "venv", "-q", "--clear", "--python", sys.executable, str(PEER)], check=True)
        install = ["uv", "pip", "install", "-q", "--require-hashes", "-r", str(lock)]
        subprocess.run(install, env={**os.environ, "VIRTUAL_ENV": str(PEER)}, check=True)
        stamp.write_text(wanted)
    return PEER / "bin" / "python"


def peer_version() -> str:
    [line] = [line for line in (HERE / "mem0.lock").read_text().splitlines() if line.startswith("mem0ai==")]
    return line.partition("==")[2].split()[0]


Kind = tuple[list[Text], int]
"""Texts to ingest, and how many of them are in one request."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all systems need: the running stack, PBML's two processes, a session, the floor's client."""

    stack: Stack
    services: Sequence[Running]
    session: aiohttp.ClientSession
    bare: Floor

    def used(self) -> dict[str, float]:
        """Processor seconds so far: of the engine, of Qdrant, of PBML's processes, of this one (the clients, and what
        the floor does itself)."""
        return {
            "engine": self.stack.engine.cpu_s(),
            "qdrant": self.stack.qdrant.cpu_s(),
            "pbml": sum(service.cpu_s() for service in self.services),
            "clients": time.process_time(),
        }

    async def batches(self) -> tuple[float, float]:
        """Calls of the engine by PBML's worker, and texts in them, so far."""
        url = f"http://127.0.0.1:{self.stack.environment['PBML_WORKER_PORT']}/metrics"
        async with self.session.get(url) as answer:
            found = dict(_BATCH_SIZE.findall(await answer.text()))
        return float(found["count"]), float(found["sum"])


async def pbml(bench: Bench, requests: Sequence[Sequence[Text]], concurrency: int) -> dict:
    """As many at a time as `concurrency`, each next one as soon as one was acknowledged; then until all are live."""
    stack = bench.stack
    client = Pbml(bench.session, f"http://127.0.0.1:{stack.environment['PBML_PORT']}", key_of(TENANT))
    calls, texts = await bench.batches()
    todo, seconds, failed = iter(requests), [], 0
    begin = time.perf_counter()

    async def write() -> None:
        nonlocal failed
        for documents in todo:
            start = time.perf_counter()
            right = await client.ingest([body_of(text) for text in documents])
            seconds.append(time.perf_counter() - start)
            failed += len(documents) * (not right)

    await asyncio.gather(*(write() for _ in range(concurrency)))
    last = time.perf_counter() - begin
    await live(stack)
    searchable = time.perf_counter() - begin
    after = await bench.batches()
    found = figures(sum(map(len, requests)), seconds, last, searchable, failed, client.wrong)
    return found | {"texts_a_call": (after[1] - texts) / max(after[0] - calls, 1)}


async def live(stack: Stack) -> None:
    """Wait until nothing that was acknowledged is on its way. Raises SystemExit after half an hour, or where one was
    given up."""
    until = time.monotonic() + _INDEXED_WITHIN_S
    pending = "SELECT count(*) FILTER (WHERE status = 'failed'), count(*) FROM versions WHERE status NOT IN"
    with stack.postgres.connect() as c:
        while True:
            row = c.execute(f"{pending} ('live', 'superseded')").fetchone()
            assert row is not None
            if row[0] or time.monotonic() > until:
                raise SystemExit(f"{row[0]} documents were given up, {row[1]} are not searchable; see pbml-worker.log")
            if not row[1]:
                return
            await asyncio.sleep(0.02)


async def mem0(bench: Bench, requests: Sequence[Sequence[Text]], concurrency: int, number: int) -> dict:
    """The peer in a process of its own; its start does not count. A request is one add of all its texts."""
    python, stack = install_peer(), bench.stack
    port = stack.qdrant.url.rpartition(":")[2]
    history = stack.directory / f"mem0-{number}.db"
    command = [str(python), str(HERE / "mem0_peer.py"), port, stack.engine.url, "mem0", str(concurrency), str(history)]
    lines = [
        json.dumps([chunk.embedded for text in documents for chunk in cut(text, CHUNK_CHARS)[0]])
        for documents in requests
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(stack.directory), "MEM0_DIR": str(stack.directory / "mem0")},
    )
    try:
        out, err = await process.communicate("\n".join(lines).encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise SystemExit(f"mem0 exited with {process.returncode}: {err.decode()[-2000:]}")
    said = json.loads(out.splitlines()[-1])
    failed = sum(len(requests[number]) for number, _reason in said["failures"])
    if failed:
        print("mem0:", said["failures"][0])
    wrong = {"failed": failed} if failed else {}
    found = figures(sum(map(len, requests)), said["adds"], said["seconds"], said["seconds"], failed, wrong)
    return found | {"stored": said["stored"], "own_cpu_s": said["cpu_s"], "texts_a_call": 1.0}


async def floor(bench: Bench, requests: Sequence[Sequence[Text]], concurrency: int) -> dict:
    seconds, last, searchable = await bench.bare.ingest(requests, concurrency)
    return figures(sum(map(len, requests)), seconds, last, searchable, 0, {})


def figures(
    documents: int, seconds: Sequence[float], acknowledged_s: float, searchable_s: float, failed: int, wrong: dict
) -> dict[str, Any]:
    return {
        "documents": documents,
        "acknowledged_per_s": (documents - failed) / acknowledged_s,
        "searchable_per_s": (documents - failed) / searchable_s,
        "acknowledged_p95_ms": load.percentile(seconds, 0.95) * 1000,
        "failed": failed,
        "wrong": wrong,
    }


def body_of(text: Text) -> dict[str, Any]:
    return {"id": text.id, "title": text.title, "text": text.body}


async def measure(
    bench: Bench, kinds: dict[str, Kind], names: Sequence[str], concurrency: int, rounds: int
) -> dict[str, Any]:
    """Kind of text -> system -> its rounds. Each round and system has texts of its own."""
    await bench.bare.collection()
    found: dict[str, Any] = {}
    for kind, (documents, together) in kinds.items():
        systems: dict[str, list[dict]] = {name: [] for name in names}
        shares = [documents[start :: len(names) * rounds] for start in range(len(names) * rounds)]
        for number in range(rounds):
            mine = shares[len(names) * number : len(names) * (number + 1)]
            for (name, done), documents_of in zip(systems.items(), mine, strict=True):
                requests = [documents_of[at : at + together] for at in range(0, len(documents_of), together)]
                before = bench.used()
                match name:
                    case "pbml":
                        figure = await pbml(bench, requests, concurrency)
                    case "mem0":
                        figure = await mem0(bench, requests, concurrency, number)
                    case _:
                        figure = await floor(bench, requests, concurrency)
                used = {part: value - before[part] for part, value in bench.used().items()}
                own = {"pbml": used["pbml"], "mem0": figure.pop("own_cpu_s", 0.0), FLOOR: used["clients"]}[name]
                each = {"engine": used["engine"], "qdrant": used["qdrant"], "own": own}
                figure["cpu_ms"] = {part: 1000 * value / len(documents_of) for part, value in each.items()}
                done.append(figure)
                print(f"ingest {kind} {number + 1}/{rounds} {name}: {done[-1]}", flush=True)
        found[kind] = {
            "systems": systems,
            "together": together,
            "chunks_each": chunks_each(documents),
            "chars_each": chars_each(documents),
        }
    return found


async def steady(
    stack: Stack, session: aiohttp.ClientSession, documents: Sequence[Text], rate: float
) -> dict[str, Any]:
    """Acknowledgements at a fixed rate, free of coordinated omission, and the time until each is searchable by the
    database's clock."""
    client = Pbml(session, f"http://127.0.0.1:{stack.environment['PBML_PORT']}", key_of(TENANT))
    with stack.postgres.connect() as c:
        [before] = c.execute("SELECT coalesce(max(seq), 0) FROM versions").fetchone() or (0,)
        outcome = await load.run(lambda n: client.ingest([body_of(documents[n])]), rate, len(documents) / rate)
        await live(stack)
        waits = [
            row[0]
            for row in c.execute(
                "SELECT extract(epoch FROM live_at - received_at)::float8 FROM versions WHERE seq > %s", (before,)
            )
        ]
    return latencies([outcome]) | {
        "rate": rate,
        "wrong": client.wrong,
        "searchable_p50_ms": load.percentile(waits, 0.5) * 1000,
        "searchable_p95_ms": load.percentile(waits, 0.95) * 1000,
    }


def latencies(outcomes: Sequence[load.Outcome]) -> dict[str, Any]:
    """Of all rounds together, from the intended starts."""
    values = [latency for outcome in outcomes for latency in outcome.latencies_s]
    return {
        **{f"p{share}_ms": load.percentile(values, share / 100) * 1000 for share in (50, 95, 99)},
        "right": len(values),
        "failed": sum(outcome.failed for outcome in outcomes),
        "generator_behind_ms": max(outcome.behind_s for outcome in outcomes) * 1000,
    }


def chunks_each(documents: Sequence[Text]) -> float:
    return statistics.fmean(len(cut(text, CHUNK_CHARS)[0]) for text in documents)


def chars_each(documents: Sequence[Text]) -> float:
    return statistics.fmean(len(text.body) for text in documents)
