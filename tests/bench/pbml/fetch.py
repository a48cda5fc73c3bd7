"""Fetches: latency at one size beside the floor's, recall against exact search, a long conversation beside a short."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from devmentor.pbml.settings import Settings
from tests.bench.pbml.client import EF, Floor, Pbml
from tests.bench.pbml.ingest import latencies
from tests.bench.pbml.ledger import Material
from tests.bench.pbml.stack import Stack, key_of
from tests.bench.qwen import load

RECALL_AT = 10
_WARM = 20
_SETTLED_WITHIN_S = 3600


@dataclass(frozen=True, slots=True)
class Load:
    """Fetches a second, for so many seconds in all, in so many rounds."""

    rate: float
    seconds: float
    rounds: int

    @property
    def each(self) -> int:
        """Fetches of a round."""
        return int(self.rate * self.seconds / self.rounds)


def queries(material: Material, number: int, seed: int) -> list[str]:
    """Four to ten words in a row of the corpus's chunks: what is asked about, in the corpus's own words."""
    chooser = random.Random(seed)
    chunks = [chunk for _, _, found in material.documents for chunk in found]
    made: list[str] = []
    while len(made) < number:
        words = chooser.choice(chunks).body.split()
        length = chooser.randint(4, 10)
        if len(words) > length:
            first = chooser.randrange(len(words) - length)
            made.append(" ".join(words[first : first + length]))
    return made


async def settled(bare: Floor) -> dict[str, Any]:
    """Wait until Qdrant has optimised what it was given. Raises SystemExit after an hour."""
    begin, green = time.monotonic(), 0
    while True:
        info = await bare.info()
        green = green + 1 if info["status"] == "green" else 0
        if green >= 3:  # between two optimisations it is green for a moment
            return {
                "seconds": time.monotonic() - begin,
                "points": info["points_count"],
                "indexed": info["indexed_vectors_count"],
                "segments": info["segments_count"],
            }
        if time.monotonic() - begin > _SETTLED_WITHIN_S:
            raise SystemExit(f"Qdrant still optimises after {_SETTLED_WITHIN_S} s: {info['optimizer_status']}")
        await asyncio.sleep(1)


async def latency(
    stack: Stack, session: aiohttp.ClientSession, bare: Floor, asked: Sequence[str], load_of: Load
) -> dict[str, Any]:
    """PBML and the floor in turns, each query once to each of them."""
    client = Pbml(session, f"http://127.0.0.1:{stack.environment['PBML_PORT']}", key_of("bench"))
    for query in asked[:_WARM]:
        await client.fetch(query)
        await bare.fetch(query)
    client.wrong.clear()
    number = load_of.each
    found: dict[str, list[load.Outcome]] = {"pbml": [], "floor": []}
    for turn in range(load_of.rounds):
        mine = asked[_WARM + turn * number : _WARM + (turn + 1) * number]
        # Not the same query twice in a row to the same cache: each system goes first in every other round.
        order = ("pbml", "floor") if turn % 2 == 0 else ("floor", "pbml")
        for name in order:
            fetch = client.fetch if name == "pbml" else bare.fetch
            send = lambda n, fetch=fetch, mine=mine: fetch(mine[n])  # noqa: E731
            found[name].append(await load.run(send, load_of.rate, load_of.seconds / load_of.rounds))
    return {name: latencies(outcomes) for name, outcomes in found.items()} | {"wrong": client.wrong}


async def recall(bare: Floor, asked: Sequence[str]) -> dict[str, Any]:
    """Mean share of the ten nearest by exact search that the index's search finds, with the product's beam."""
    shares: list[float] = []
    for query in asked:
        [vector] = await bare.embed([query])
        exact = await bare.search(vector, "bench", limit=RECALL_AT, exact=True)
        near = await bare.search(vector, "bench", limit=RECALL_AT)
        truth = {hit["id"] for hit in exact}
        shares.append(len(truth & {hit["id"] for hit in near}) / len(truth))
    assert Settings(tenants_file=None).hnsw_ef == EF
    mean = sum(shares) / len(shares)
    return {"at": RECALL_AT, "hnsw_ef": EF, "queries": len(shares), "mean": mean, "least": min(shares)}


async def conversations(
    stack: Stack, session: aiohttp.ClientSession, talks: Sequence[str], asked: Sequence[str], load_of: Load
) -> dict[str, Any]:
    """Fetches inside each conversation, in turns, with the same queries."""
    client = Pbml(session, f"http://127.0.0.1:{stack.environment['PBML_PORT']}", key_of("talks"))
    number = load_of.each
    found: dict[str, list[load.Outcome]] = {talk: [] for talk in talks}
    for talk in talks:
        for query in asked[:_WARM]:
            await client.fetch(query, talk)
    client.wrong.clear()
    for turn in range(load_of.rounds):
        mine = asked[_WARM + turn * number : _WARM + (turn + 1) * number]
        for talk in talks if turn % 2 == 0 else reversed(talks):
            send = lambda n, talk=talk, mine=mine: client.fetch(mine[n], talk)  # noqa: E731
            found[talk].append(await load.run(send, load_of.rate, load_of.seconds / load_of.rounds))
    return {talk: latencies(outcomes) for talk, outcomes in found.items()} | {"wrong": client.wrong}
