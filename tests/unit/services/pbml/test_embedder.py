"""The embeddings client against an HTTP server that misbehaves on demand."""

import math

import pytest
from aiohttp import web

from devmentor.pbml.embedder import Embedder, EmbedderUnavailable, TextRefused, cosine

WINDOW = 50


class Server:
    """Answers like llama.cpp's server: a text beyond the window makes the whole call fail with 500."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.status = 200
        self.dimensions = 3
        self.window = WINDOW
        self.raw: bytes | None = None
        self.runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/embeddings", self.answer)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def answer(self, request: web.Request) -> web.Response:
        texts = (await request.json())["input"]
        self.calls.append(texts)
        if self.status != 200:
            return web.json_response({"error": {"message": "broken"}}, status=self.status)
        if self.raw is not None:
            return web.Response(body=self.raw)
        if any(len(text) > self.window for text in texts):
            message = "input (602 tokens) is too large to process. increase the physical batch size"
            return web.json_response({"error": {"code": 500, "message": message}}, status=500)
        data = [
            {"index": i, "embedding": [float(len(t)), float(ord(t[0])), 1.0][: self.dimensions]}
            for i, t in enumerate(texts)
        ]
        return web.json_response({"data": data[::-1]})


@pytest.fixture
async def servers():
    started = [Server(), Server()]
    for server in started:
        await server.start()
    yield started
    for server in started:
        await server.runner.cleanup()


@pytest.fixture
async def embedder(servers):
    client = Embedder([s.url for s in servers], "m", 3, timeout_s=2)
    await client.open()
    yield client
    await client.close()


async def test_vectors_are_in_order_and_of_length_one(embedder, servers):
    vectors = await embedder.embed(["a", "bb"])
    assert all(math.isclose(cosine(v, v), 1) for v in vectors)
    assert vectors[0][0] / vectors[0][1] == pytest.approx(1 / ord("a"))
    assert vectors[1][0] / vectors[1][1] == pytest.approx(2 / ord("b"))


async def test_the_next_endpoint_answers_where_one_fails_and_the_broken_one_rests(embedder, servers):
    servers[0].status = 503
    for _ in range(3):
        assert len(await embedder.embed(["a"])) == 1
    assert len(servers[0].calls) == 1
    assert len(servers[1].calls) == 3


async def test_all_away(embedder, servers):
    for server in servers:
        server.status = 503
    with pytest.raises(EmbedderUnavailable) as caught:
        await embedder.embed(["a"])
    assert servers[0].url in str(caught.value)
    assert servers[1].url in str(caught.value)


async def test_wrong_dimensions_are_not_taken(embedder, servers):
    for server in servers:
        server.dimensions = 2
    with pytest.raises(EmbedderUnavailable, match="3 dimensions expected"):
        await embedder.embed(["a"])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b'{"data": null}',
        b'{"data": [{"index": 0}]}',
        b'{"data": ["x"]}',
        b'{"data": [{"index": 0, "embedding": 3}]}',
        b'{"data": [{"index": 0, "embedding": [null, 1, 2]}]}',
        b'{"data": [{"index": 0, "embedding": [NaN, 1, 2]}]}',
        b'{"data": [{"index": 0, "embedding": [1e999, 1, 2]}]}',
    ],
)
async def test_where_an_answer_is_garbled_the_next_endpoint_is_asked(embedder, servers, raw):
    servers[0].raw = raw
    assert len(await embedder.embed(["a"])) == 1
    servers[1].raw = raw
    with pytest.raises(EmbedderUnavailable, match="not understood"):
        await embedder.embed(["a"])


async def test_a_long_text_does_not_spoil_its_batch_and_is_embedded_in_parts(embedder, servers):
    vectors = await embedder.embed(["a", "b" * (WINDOW * 3), "c"])
    assert len(vectors) == 3
    assert math.isclose(cosine(vectors[1], vectors[1]), 1)
    assert vectors[0] == (await embedder.embed(["a"]))[0]


async def test_a_refused_text(embedder, servers):
    for server in servers:
        server.status = 400
    with pytest.raises(TextRefused):
        await embedder.embed(["a"])
    for server in servers:
        server.status, server.window = 200, 0
    with pytest.raises(TextRefused):
        await embedder.embed(["a"])
