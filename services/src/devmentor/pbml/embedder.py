"""Client of OpenAI-style /v1/embeddings endpoints: a list of them, the next one where one fails."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Sequence

import aiohttp
from prometheus_client import Counter, Histogram

log = logging.getLogger(__name__)

CALLS = Counter("pbml_embedding_calls", "Calls of the embeddings endpoint", ["result"])
SECONDS = Histogram(
    "pbml_embedding_seconds", "Time of one call", buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
)

_COOL_DOWN_S = 5.0
_SHORTEST_SPLIT = 32

Vector = list[float]


class EmbedderUnavailable(Exception):
    """No endpoint answers; worth trying again."""


class TextRefused(Exception):
    """The endpoint can not embed this text, now or later."""


class _TooLarge(Exception):
    """One of the inputs is longer than the model's window."""


class Embedder:
    """Vectors of length 1 and of the configured dimensions."""

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        dimensions: int,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        concurrency: int = 2,
    ) -> None:
        if not urls:
            raise ValueError("at least one embeddings URL is needed (PBML_EMBEDDING_URLS)")
        self._urls = [url.rstrip("/") for url in urls]
        self._model = model
        self.dimensions = dimensions
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._resting: dict[str, float] = {}
        self._slots = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Must be called inside the event loop, before the first call."""
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=2.0),
            connector=aiohttp.TCPConnector(limit=16),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector a text, in order. Raises EmbedderUnavailable or TextRefused.

        A text beyond the model's window is embedded in halves, whose mean stands for it: losing its
        tail in silence would make the tail impossible to find.
        """
        if not texts:
            return []
        try:
            return await self._call(texts)
        except _TooLarge:
            if len(texts) > 1:
                middle = len(texts) // 2
                return [*await self.embed(texts[:middle]), *await self.embed(texts[middle:])]
            return [await self._in_halves(texts[0])]

    async def _in_halves(self, text: str) -> Vector:
        if len(text) < _SHORTEST_SPLIT:
            raise TextRefused(f"the embeddings endpoint calls {len(text)} characters too large")
        middle = len(text) // 2
        halves = await self.embed([text[:middle], text[middle:]])
        return _unit([a + b for a, b in zip(*halves, strict=True)])

    async def _call(self, texts: Sequence[str]) -> list[Vector]:
        failures: list[str] = []
        for url in self._in_order():
            try:
                async with self._slots:
                    with SECONDS.time():
                        vectors = await self._post(url, texts)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                CALLS.labels("failed").inc()
                self._resting[url] = time.monotonic() + _COOL_DOWN_S
                failures.append(f"{url}: {type(error).__name__}: {error}")
                continue
            CALLS.labels("ok").inc()
            self._resting.pop(url, None)
            return vectors
        raise EmbedderUnavailable("; ".join(failures)[:500])

    def _in_order(self) -> list[str]:
        """Endpoints that failed a moment ago come last."""
        now = time.monotonic()
        return sorted(self._urls, key=lambda url: self._resting.get(url, 0.0) > now)

    async def _post(self, url: str, texts: Sequence[str]) -> list[Vector]:
        if self._session is None:
            raise RuntimeError("Embedder.open() was not called")
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        async with self._session.post(f"{url}/v1/embeddings", json=body) as answer:
            if answer.status >= 400:
                said = (await answer.text())[:500]
                if answer.status in (400, 413, 422, 500) and any(
                    w in said for w in ("too large", "too long", "exceed")
                ):
                    CALLS.labels("too_large").inc()
                    raise _TooLarge(said)
                if answer.status in (400, 422):
                    CALLS.labels("refused").inc()
                    raise TextRefused(f"{url} answered {answer.status}: {said}")
                raise aiohttp.ClientPayloadError(f"status {answer.status}: {said}")
            raw = await answer.read()
        try:
            return self._vectors(raw, len(texts))
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            # An endpoint that talks nonsense is as good as away.
            raise aiohttp.ClientPayloadError(f"answer not understood: {type(error).__name__}: {error}") from error

    def _vectors(self, raw: bytes, count: int) -> list[Vector]:
        data = json.loads(raw)["data"]
        vectors = [item["embedding"] for item in sorted(data, key=lambda item: item["index"])]
        if len(vectors) != count or any(len(vector) != self.dimensions for vector in vectors):
            raise ValueError(
                f"{count} vectors of {self.dimensions} dimensions expected, got {[len(v) for v in vectors][:4]}"
            )
        units = [_unit(vector) for vector in vectors]
        if not all(math.isfinite(value) for unit in units for value in unit):
            raise ValueError("a vector is not of finite numbers")
        return units


def _unit(vector: Sequence[float]) -> Vector:
    norm = math.sqrt(sum(value * value for value in vector))
    return [value / norm for value in vector] if norm > 0 else list(vector)


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Of vectors of length 1."""
    return sum(a * b for a, b in zip(left, right, strict=True))
