"""A whole tier on loopback, with peers that a test steers."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import qwen_doubles as doubles
import uvicorn

from devmentor.qwen.app import build
from devmentor.qwen.settings import QwenSettings

KEYS = {"lab": "key-of-lab", "other": "key-of-other"}
ADMIN = "the admin key"


@dataclass
class Answer:
    status: int
    headers: Any
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def served_by(self) -> str:
        return self.headers["x-devmentor-served-by"]

    @property
    def cache(self) -> str:
        return self.headers["x-devmentor-cache"]

    @property
    def context(self) -> str:
        return self.headers["x-devmentor-context"]

    @property
    def text(self) -> str:
        return self.body["choices"][0]["message"]["content"]

    @property
    def chunks(self) -> list[Any]:
        data = [line[6:] for line in self.raw.split(b"\n") if line.startswith(b"data: ")]
        assert data[-1] == b"[DONE]", data
        return [json.loads(line) for line in data[:-1]]

    @property
    def streamed_text(self) -> str:
        return "".join(c["delta"].get("content") or "" for chunk in self.chunks for c in chunk["choices"])


class Tier:
    """A running QWEN and a client of it."""

    def __init__(self, url: str, session: aiohttp.ClientSession, app: Any) -> None:
        self.url = url
        self.session = session
        self.app = app

    def headers(self, tenant: str = "lab", **more: str) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return {"Authorization": f"Bearer {KEYS[tenant]}", **named}

    async def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.session.request(
            method, self.url + path, data=data, headers=self.headers() if headers is None else headers
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def chat(
        self,
        question: str = "Who is there?",
        *,
        tenant: str = "lab",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        body = {"model": doubles.MODEL, "messages": [{"role": "user", "content": question}], **more}
        return await self.request("POST", "/v1/chat/completions", body, self.headers(tenant) | (headers or {}))

    async def settle(self) -> None:
        """Until nothing is left to be stored or written back."""
        await asyncio.sleep(0.05)


StartTier = Callable[..., Awaitable[Tier]]


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[doubles.Engine]:
    yield doubles.Engine()


@pytest_asyncio.fixture
async def pbml() -> AsyncIterator[doubles.Pbml]:
    yield doubles.Pbml()


@pytest_asyncio.fixture
async def urls(engine: doubles.Engine, pbml: doubles.Pbml) -> AsyncIterator[dict[str, str]]:
    async with doubles.serving(engine.app) as engine_url, doubles.serving(pbml.app) as pbml_url:
        yield {"engine": engine_url, "pbml": pbml_url}
        engine.release.set()


@pytest_asyncio.fixture
async def start(tmp_path: Path, urls: dict[str, str]) -> AsyncIterator[StartTier]:
    """Starts a tier with the given settings; `models` defaults to the engine double."""
    tenants = tmp_path / "tenants.json"
    digest = lambda key: hashlib.sha256(key.encode()).hexdigest()  # noqa: E731
    tenants.write_text(json.dumps([{"tenant": name, "key_sha256": digest(key)} for name, key in KEYS.items()]))
    async with AsyncExitStack() as stack:

        async def begin(**settings: Any) -> Tier:
            given = {
                "models": {
                    doubles.MODEL: {"url": urls["engine"]},
                    "vectors": {"url": urls["engine"], "kind": "embedding"},
                },
                "tenants_file": tenants,
                "instance": "here",
                "context_version_s": 0.0,
                "admin_key_sha256": digest(ADMIN),
                "trace_size": 10,
                **settings,
            }
            app = build(QwenSettings(**given))
            server = uvicorn.Server(
                uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="on", timeout_graceful_shutdown=1)
            )
            server.capture_signals = nullcontext  # type: ignore[method-assign]
            running = asyncio.create_task(server.serve())
            await doubles.until(lambda: server.started or running.done())
            assert server.started, running.exception()
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

            async def stop() -> None:
                server.should_exit = True
                await running

            stack.push_async_callback(stop)
            port = server.servers[0].sockets[0].getsockname()[1]
            return Tier(f"http://127.0.0.1:{port}", session, app)

        yield begin


@pytest_asyncio.fixture
async def grounded(start: StartTier, urls: dict[str, str]) -> Tier:
    """A tier with PBML."""
    return await start(pbml_urls=[urls["pbml"]])


@pytest.fixture
def admin_key() -> str:
    return ADMIN
