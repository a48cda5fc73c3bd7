"""Peers of the semantic cache whose behaviour a test chooses: an embedding engine, and points in memory for Qdrant."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from devmentor.qwen.semantic import Answer, Candidate, Match


class Words:
    """An embedding engine for which texts of the same words mean the same. `delay` seconds pass before each answer."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.asked = 0
        self.app = web.Application()
        self.app.add_routes([web.post("/v1/embeddings", self._embeddings), web.get("/slots", self._slots)])

    async def _embeddings(self, request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.delay)
        vector = [0.0] * 64
        for word, times in Counter((await request.json())["input"].lower().strip("?!. ").split()).items():
            vector[sum(word.encode()) % 64] += times
        return web.json_response({"data": [{"embedding": vector}], "usage": {}})

    async def _slots(self, _request: web.Request) -> web.Response:
        return web.json_response([{"id": 0, "n_decoded": 0}])


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


class Points:
    """A store in memory that compares and forgets as Qdrant does; `down`: not for searches and purges.

    `before_put` and `after_put` are awaited where they are set."""

    def __init__(self) -> None:
        self.kept: list[tuple[Candidate, Sequence[float], Answer]] = []
        self.down = False
        self.searched = 0
        self.forgotten: list[tuple[str, int]] = []
        self.before_put: Callable[[], Awaitable[None]] | None = None
        self.after_put: Callable[[], Awaitable[None]] | None = None

    @property
    def questions(self) -> list[str]:
        return [asked.question for asked, *_ in self.kept]

    def _unless_down(self) -> None:
        if self.down:
            raise OSError("down")

    async def search(self, wanted: Candidate, vector: Sequence[float], threshold: float, floor: int) -> list[Match]:
        self.searched += 1
        self._unless_down()
        scored = [
            Match(answer.payload, answer.context, asked.question, cosine(vector, kept))
            for asked, kept, answer in self.kept
            if asked.partition == wanted.partition and answer.generation >= floor
        ]
        return sorted((match for match in scored if match.score >= threshold), key=lambda match: -match.score)

    async def put(self, asked: Candidate, vector: Sequence[float], answer: Answer) -> None:
        if self.before_put is not None:
            await self.before_put()
        self.kept.append((asked, vector, answer))
        if self.after_put is not None:
            await self.after_put()

    async def remove(self, asked: Candidate) -> None:
        self._unless_down()
        self.kept = [point for point in self.kept if point[0] != asked]

    async def forget(self, scope: str, generation: int) -> int:
        self._unless_down()
        self.forgotten.append((scope, generation))
        tenant, model = scope.split(":")
        before = len(self.kept)
        self.kept = [
            (asked, vector, answer)
            for asked, vector, answer in self.kept
            if tenant not in ("*", asked.tenant) or model not in ("*", asked.model) or answer.generation >= generation
        ]
        return before - len(self.kept)

    async def sweep(self) -> int:
        return 0

    async def close(self) -> None:
        pass
