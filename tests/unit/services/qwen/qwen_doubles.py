"""Peers of QWEN whose behaviour a test chooses: an engine, PBML and a cache node, each a real server on loopback."""

import asyncio
import fnmatch
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

MODEL = "tiny"
WORDS = ["Hel", "lo ", "from ", "the ", "engine"]
SAID = "".join(WORDS)


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait for what another task brings about."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is in a server's state
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(app: web.Application, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The application's base URL while it is served."""
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


class Engine:
    """Answers as an OpenAI engine does, or fails in the way that `mode` says."""

    def __init__(self, context_length: int = 4096) -> None:
        self.mode = "ok"
        self.bodies: list[dict[str, Any]] = []
        self.cancelled = 0
        self.embedded = 0
        self.active = 0
        self.release = asyncio.Event()
        self.context_length = context_length
        self.pace = 0.0  # seconds before each word of a stream
        self.slots: list[dict[str, Any]] = [{"id": 0, "n_decoded": 0}]
        self.app = web.Application()
        self.app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
                web.post("/v1/embeddings", self._embeddings),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.get("/slots", self._slots),
            ]
        )

    @property
    def questions(self) -> list[dict[str, Any]]:
        """Bodies of clients' requests, without the tier's own probes."""
        return [body for body in self.bodies if body.get("messages") != [{"role": "user", "content": "ping"}]]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.active += 1
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        canary = body["messages"] == [{"role": "user", "content": "ping"}]
        if self.mode == "error" or (self.mode == "error to clients" and not canary):
            return web.json_response({"error": {"message": "the engine is broken", "code": 500}}, status=500)
        if self.mode == "refuse":
            error = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
            return web.json_response({"error": error}, status=400)
        mode = self.mode
        if mode in ("hang", "late error", "late refusal"):
            await self.release.wait()
        if mode == "late error":
            return web.json_response({"error": {"message": "the engine broke", "code": 500}}, status=500)
        if mode == "late refusal":
            return web.json_response({"error": {"message": "too long", "code": "too_long"}}, status=400)
        if not body.get("stream"):
            message = {"role": "assistant", "content": SAID}
            return web.json_response(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
                }
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(choices: list[dict[str, Any]], **more: Any) -> None:
            chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            text = json.dumps({**chunk, "choices": choices, **more}, separators=(",", ":"))
            await response.write(f"data: {text}\n\n".encode())

        if body.get("tools"):
            for n in range(body.get("n", 1)):
                call = {
                    "index": 0,
                    "id": f"call_{n}",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ""},
                }
                await send([{"index": n, "delta": {"role": "assistant", "tool_calls": [call]}, "finish_reason": None}])
                for piece in ('{"city":', '"Bonn"}'):
                    part = {"index": 0, "function": {"arguments": piece}}
                    await send([{"index": n, "delta": {"tool_calls": [part]}, "finish_reason": None}])
                await send([{"index": n, "delta": {}, "finish_reason": "tool_calls"}])
            await response.write(b"data: [DONE]\n\n")
            return response
        for number, word in enumerate(WORDS):
            await asyncio.sleep(self.pace)
            await send([{"index": 0, "delta": {"content": word}, "finish_reason": None}])
            if self.mode == "break" and number == 1:
                assert request.transport is not None
                request.transport.abort()
                return response
            if self.mode == "pause" and number == 1:
                await self.release.wait()
        await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if (body.get("stream_options") or {}).get("include_usage"):
            await send([], usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        """Legacy completions: as many choices as `n`, each saying its number after the words."""
        body = await request.json()
        self.bodies.append(body)
        if self.mode == "hang":
            await self.release.wait()
        if self.mode == "error":
            return web.json_response({"error": {"message": "the engine is broken", "code": 500}}, status=500)
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        numbers = range(body.get("n", 1))
        if not body.get("stream"):
            choices = [{"index": n, "text": f"{SAID}{n}", "logprobs": None, "finish_reason": "stop"} for n in numbers]
            return web.json_response({**head, "choices": choices, "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for n in numbers:
            for word in [*WORDS, str(n)]:
                part = {"index": n, "text": word, "logprobs": None, "finish_reason": "stop" if word == str(n) else None}
                await response.write(b"data: " + json.dumps({**head, "choices": [part]}).encode() + b"\n\n")
        last = json.dumps({**head, "choices": [], "usage": usage}, separators=(",", ":"))
        await response.write(f"data: {last}\n\ndata: [DONE]\n\n".encode())
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.embedded += body["input"] != "ping"
        if self.mode == "hang":
            await self.release.wait()
        if self.mode == "error":
            return web.json_response({"error": {"message": "the engine is broken"}}, status=500)
        data = [{"index": 0, "embedding": [0.5, 0.25], "object": "embedding"}]
        return web.json_response({"object": "list", "model": body["model"], "data": data, "usage": {}})

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL, "meta": {"n_ctx": self.context_length}}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        """Four characters a token."""
        text = (await request.json())["content"]
        return web.json_response({"tokens": [0] * -(-len(text) // 4)})

    async def _slots(self, _request: web.Request) -> web.Response:
        return web.json_response(self.slots)


class Pbml:
    """Holds chunks and turns; `down` answers 503, `degraded` says so."""

    def __init__(self) -> None:
        self.version = "d1.c0"
        self.chunks: list[dict[str, Any]] = []
        self.turns: list[dict[str, str]] = []
        self.down = False
        self.degraded = False
        self.status = 200
        self.delay = 0.0
        self.deadlines: list[str | None] = []
        self.asked: list[dict[str, Any]] = []
        self.written: list[tuple[dict[str, Any], str | None]] = []
        self.versions_asked = 0
        self.authorizations: set[str] = set()
        self.certificate: bytes | None = None
        self.closes = False
        self.app = web.Application()
        self.app.add_routes(
            [
                web.get("/v1/context/version", self._version),
                web.post("/v1/context", self._context),
                web.post("/v1/turns", self._turn),
            ]
        )
        self.app.on_response_prepare.append(self._close)

    def learn(self, text: str) -> None:
        """A document becomes live."""
        self.chunks.insert(
            0,
            {
                "text": text,
                "score": 0.9,
                "document_id": f"doc-{len(self.chunks)}",
                "version": 1,
                "chunk": 0,
                "source": "index",
            },
        )
        self.version = f"d{len(self.chunks) + 1}.c0"

    async def _close(self, _request: web.Request, response: web.StreamResponse) -> None:
        if self.closes:
            response.force_close()

    def _unless_down(self, request: web.Request) -> None:
        self.authorizations.add(request.headers.get("Authorization", ""))
        channel = request.get_extra_info("ssl_object")
        self.certificate = channel.getpeercert(binary_form=True) if channel is not None else None
        if self.down:
            raise web.HTTPServiceUnavailable
        if self.status != 200:
            raise web.HTTPConflict

    async def _version(self, request: web.Request) -> web.Response:
        self._unless_down(request)
        self.versions_asked += 1
        return web.json_response({"context_version": self.version})

    async def _context(self, request: web.Request) -> web.Response:
        self._unless_down(request)
        self.asked.append(await request.json())
        self.deadlines.append(request.headers.get("X-DevMentor-Deadline-Ms"))
        await asyncio.sleep(self.delay)
        return web.json_response(
            {
                "chunks": self.chunks,
                "turns": self.turns,
                "tokens": 1,
                "context_version": self.version,
                "degraded": self.degraded,
            }
        )

    async def _turn(self, request: web.Request) -> web.Response:
        self._unless_down(request)
        self.written.append((await request.json(), request.headers.get("Idempotency-Key")))
        return web.json_response({"watermark": "w"}, status=202)


class CacheNode:
    """What QWEN uses of the Valkey protocol. `delay` seconds pass before each answer; `keys` is what it holds."""

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.expiries: dict[bytes, int] = {}
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self.delay = 0.0
        self.commands: list[bytes] = []
        self.certificates: list[bytes] = []
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """host:port while it is served; its connections die with it, as with a killed node."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=tls)
        host, port = server.sockets[0].getsockname()[:2]
        try:
            yield f"{host}:{port}"
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        channel = writer.get_extra_info("ssl_object")
        if channel is not None:
            self.certificates.append(channel.getpeercert(binary_form=True))
        try:
            while header := await reader.readline():
                words = []
                for _ in range(int(header[1:])):
                    length = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(length + 2))[:-2])
                self.commands.append(words[0].upper())
                if words[0].upper() in (b"GET", b"SET"):
                    await asyncio.sleep(self.delay)
                writer.write(self._reply(words))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _reply(self, words: list[bytes]) -> bytes:
        command = words[0].upper()
        if command == b"PING":
            return b"+PONG\r\n"
        if command == b"GET":
            value = self.keys.get(words[1])
            return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
        if command == b"SET":
            self.keys[words[1]] = words[2]
            self.expiries[words[1]] = int(words[4])
        if command == b"HGETALL":
            return _array([word for pair in self.hashes.get(words[1], {}).items() for word in pair])
        if command == b"HSET":
            self.hashes.setdefault(words[1], {}).update(zip(words[2::2], words[3::2], strict=True))
            return b":1\r\n"
        if command == b"SCAN":
            pattern = words[words.index(b"MATCH") + 1].decode()
            found = [key for key in self.keys if fnmatch.fnmatchcase(key.decode(), pattern)]
            return b"*2\r\n$1\r\n0\r\n" + _array(found)
        if command == b"UNLINK":
            return b":%d\r\n" % sum(self.keys.pop(key, None) is not None for key in words[1:])
        return b"+OK\r\n"


def _array(words: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
