"""A pretended embeddings engine: it answers at once with a vector made of the text's hash, as one on a GPU may.

Where the engine shares the processor with all else it takes most of it, and every system is as fast as the engine is;
with this one in its place the systems themselves are compared. Of no use for recall.

    python -m tests.bench.pbml.pretended_engine PORT
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
from aiohttp import web

DIMENSIONS = 384


def vector(text: str) -> list[float]:
    """Of length 1, always the same for the same text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(DIMENSIONS)
    return [round(float(value), 6) for value in values / np.linalg.norm(values)]


async def embeddings(request: web.Request) -> web.Response:
    asked = (await request.json())["input"]
    texts = [asked] if isinstance(asked, str) else asked
    data = [{"object": "embedding", "index": at, "embedding": vector(text)} for at, text in enumerate(texts)]
    body = {"object": "list", "model": "embeddings", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    return web.Response(body=json.dumps(body).encode(), content_type="application/json")


async def tokenize(request: web.Request) -> web.Response:
    """llama.cpp's, roughly: a token for four characters."""
    return web.json_response({"tokens": [0] * (len(json.loads(await request.read())["content"]) // 4)})


async def health(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def application() -> web.Application:
    app = web.Application(client_max_size=2**26)
    posts = [web.post("/v1/embeddings", embeddings), web.post("/tokenize", tokenize)]
    app.add_routes([*posts, web.get("/health", health)])
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
