"""`make bench-qwen-memory`: the memory of QWEN and of LiteLLM over half an hour of the same load, at the same time.

    python -m tests.bench.qwen.memory [--minutes 30] [--rate 20]

Every third request is a stream, every fifth repeats a question, the others are new. QWEN's process cache is bounded to
a size that the first minutes fill, so that what grows after is no cache. Growth is the least-squares slope of resident
memory over the last two thirds of the run. The result goes to .cache/bench/qwen-memory.json and docs/qwen-bench.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from statistics import linear_regression, median
from typing import Any

import aiohttp

from tests.bench.qwen import load
from tests.bench.qwen.report import NAMES, PAGE
from tests.bench.qwen.run import Client
from tests.bench.qwen.systems import Running, everything
from tests.chaos.postgres.run import commit
from tools.docs import replaced
from tools.runs import ROOT

RESULT = ROOT / ".cache" / "bench" / "qwen-memory.json"
CACHE_BYTES = 4 * 2**20
FLAT = 0.05
"""Growth in an hour, as a share of the median, up to which memory counts as flat."""

Sample = tuple[float, float]
"""Seconds since the beginning, MiB."""


def growth_per_hour(samples: Sequence[Sample]) -> float:
    """MiB an hour over the last two thirds. Raises StatisticsError where those are fewer than two samples."""
    late = [sample for sample in samples if sample[0] >= samples[-1][0] / 3]
    return linear_regression([at for at, _ in late], [mib for _, mib in late]).slope * 3600


def flat(samples: Sequence[Sample]) -> bool:
    """Whether memory stands still, or sinks."""
    return growth_per_hour(samples) <= FLAT * median(mib for _, mib in samples)


def table(result: dict[str, Any]) -> str:
    lines = [
        "| system | MiB at the start | after a third | at the end | most | growth, MiB an hour | flat | answered "
        "| failed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in result["systems"].items():
        samples = [(at, mib) for at, mib in found["samples"]]
        third = next(mib for at, mib in samples if at >= samples[-1][0] / 3)
        lines.append(
            f"| {NAMES[name]} | {samples[0][1]:.0f} | {third:.0f} | {samples[-1][1]:.0f} "
            f"| {max(mib for _, mib in samples):.0f} | {growth_per_hour(samples):+.1f} "
            f"| {'yes' if flat(samples) else 'no'} | {found['right']} | {found['failed']} |"
        )
    conditions = (
        f"{result['minutes']:g} minutes, {result['rate']:g} requests a second each, QWEN's process cache bounded to "
        f"{CACHE_BYTES // 2**20} MiB, {result['cores']} cores, commit {result['commit']}. Flat: at most "
        f"{FLAT:.0%} of the median an hour, over the last two thirds."
    )
    return "\n".join([*lines, "", conditions])


async def _mixed(client: Client, number: int) -> bool:
    if number % 3 == 0:
        return await client.first_token(number)
    return await (client.same(number) if number % 5 == 0 else client.fresh(number))


async def _watch(system: Running, samples: list[Sample], every_s: float) -> None:
    begin = time.monotonic()
    while True:
        samples.append((time.monotonic() - begin, system.memory_mib()))
        await asyncio.sleep(every_s)


async def measure(systems: Sequence[Running], rate: float, seconds: float) -> dict[str, dict[str, Any]]:
    async def one(session: aiohttp.ClientSession, system: Running) -> dict[str, Any]:
        client, samples = Client(session, system), list[Sample]()
        watch = asyncio.create_task(_watch(system, samples, seconds / 120))
        try:
            outcome = await load.run(lambda number: _mixed(client, number), rate, seconds)
        finally:
            watch.cancel()
        failed = outcome.failed + client.broken
        return {"samples": samples, "right": len(outcome.latencies_s), "failed": failed}

    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        found = await asyncio.gather(*(one(session, system) for system in systems))
    return {system.name: result for system, result in zip(systems, found, strict=True)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-qwen-memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second to each system")
    parser.add_argument("--only-look", action="store_true", help="print the table, write nothing")
    options = parser.parse_args(arguments)
    os.environ["QWEN_CACHE_L1_BYTES"] = str(CACHE_BYTES)
    with everything(["qwen", "litellm"]) as (_, *systems):
        found = asyncio.run(measure(systems, options.rate, options.minutes * 60))
    conditions = {"commit": commit(), "cores": os.cpu_count(), "minutes": options.minutes, "rate": options.rate}
    result = {**conditions, "systems": found}
    print(table(result))
    if not options.only_look:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result) + "\n")
        PAGE.write_text(replaced(PAGE.read_text(), "memory", table(result), PAGE.name))
    return 0 if flat(found["qwen"]["samples"]) and not found["qwen"]["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
