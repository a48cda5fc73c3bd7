"""Clients of the gateway: requests as an OpenAI client sends them, begun when the schedule says, answered or not."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.bench.qwen.load import until
from tests.chaos.qwen import seen as s
from tests.chaos.qwen.questions import CHAT, Ask
from tests.chaos.qwen.seen import Seen

CONNECT_S = 3.0
READ_S = 25.0
CONNECTIONS = 6
GIVE_UP_S = 10.0
COMMENT = re.compile(r"(served-by|cache|context)=([\w,-]+)")


@dataclass
class Reading:
    """An answer as it comes in."""

    begin: float
    answer: httpx.Response | None = None
    body: bytearray = field(default_factory=bytearray)
    first_byte_s: float | None = None
    silence_s: float = 0.0
    heard: float = 0.0

    def __post_init__(self) -> None:
        self.heard = self.begin

    def hear(self, chunk: bytes) -> None:
        now = time.monotonic()
        if self.first_byte_s is None:
            self.first_byte_s = now - self.begin
        self.silence_s = max(self.silence_s, now - self.heard)
        self.heard = now
        self.body += chunk


def error_code(body: Any) -> str:
    """The code of an error in OpenAI's form; "?" for anything else."""
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and code else "?"


def parsed(raw: bytes) -> Any:
    """JSON, None where it is none."""
    with suppress(ValueError):
        return json.loads(raw)
    return None


def events(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """Data of a stream's events in order, and what its comments say of who served it (the last word counts)."""
    data: list[bytes] = []
    said: dict[str, str] = {}
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                data.append(line[5:].strip())
            elif line.startswith(b":"):
                said.update(COMMENT.findall(line.decode("utf-8", "replace")))
    return data, said


def whole_outcome(status: int, body: bytes) -> str:
    """Of an answer that is not streamed, and of any that is not 200."""
    found = parsed(body)
    if status != 200:
        return f"{status} {error_code(found)}"
    choices = found.get("choices") if isinstance(found, dict) else None
    return s.OK if isinstance(choices, list) and choices and "message" in choices[0] else s.UNREADABLE


def ended(chunk: Any) -> bool:
    """Whether a stream's chunk says why a choice is over. A stream without such a chunk is truncated."""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(isinstance(each, dict) and each.get("finish_reason") for each in choices)


def pbml_outcome(status: int, body: bytes, kind: str) -> tuple[str, str, str]:
    """(outcome, durability of an ingest, "degraded" for a fetch that said so, else "ok")."""
    found = parsed(body)
    said = found if isinstance(found, dict) else {}
    if status != (202 if kind == s.INGEST else 200):
        return f"{status} {error_code(found)}", "", ""
    if kind == s.INGEST:
        right = isinstance(said.get("version"), int) and isinstance(said.get("durability"), str)
        return (s.OK, said["durability"], "") if right else (s.UNREADABLE, "", "")
    if not isinstance(said.get("chunks"), list):
        return s.UNREADABLE, "", ""
    return s.OK, "", "degraded" if said.get("degraded") else "ok"


def stream_outcome(data: list[bytes]) -> str:
    """Of a stream that came to its end. After [DONE], or an error, nothing may follow."""
    if not data:
        return s.UNFINISHED
    *before, last = data
    chunks = [parsed(each) for each in before]
    if any(not isinstance(each, dict) or "error" in each for each in chunks):
        return s.UNREADABLE
    if last == b"[DONE]":
        if not chunks:
            return s.UNREADABLE
        return s.OK if any(ended(chunk) for chunk in chunks) else s.UNFINISHED
    found = parsed(last)
    if isinstance(found, dict) and "error" in found:
        return f"event {error_code(found)}"
    return s.UNFINISHED


async def send(client: httpx.AsyncClient, number: int, ask: Ask, model: str) -> Seen:
    """One request and what was seen of it. Raises nothing that the platform can cause."""
    reading = Reading(time.monotonic())
    detail = ""
    try:
        async with asyncio.timeout(ask.limit_s + GIVE_UP_S):
            await _read(client, ask, model, reading)
        outcome = ""
    except TimeoutError:
        outcome = s.HUNG
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        outcome, detail = s.CONNECT, repr(error)
    except httpx.TimeoutException as error:
        outcome, detail = s.SILENCE, repr(error)
    except (httpx.HTTPError, ssl.SSLError, OSError) as error:
        outcome, detail = s.CUT, repr(error)
    # Silence at the end counts, too.
    now = time.monotonic()
    silence_s = max(reading.silence_s, now - reading.heard)
    return _seen(number, ask, reading, outcome, now - reading.begin, silence_s, detail)


async def _read(client: httpx.AsyncClient, ask: Ask, model: str, reading: Reading) -> None:
    body = {"model": model, **ask.body} if ask.path == CHAT else ask.body
    async with client.stream("POST", ask.path, json=body, headers=ask.headers) as answer:
        reading.answer = answer
        async for chunk in answer.aiter_bytes():
            reading.hear(chunk)


def _outcome(kind: str, status: int, data: list[bytes], body: bytes) -> tuple[str, dict[str, str]]:
    """What came of an answer that came to its end, and what it says outside of its headers."""
    if kind in (s.INGEST, s.FETCH):
        outcome, durability, context = pbml_outcome(status, body, kind)
        return outcome, {"served-by": durability, "context": context}
    if kind == s.STREAM and status == 200:
        return stream_outcome(data), {}
    return whole_outcome(status, body), {}


def _seen(number: int, ask: Ask, reading: Reading, outcome: str, total_s: float, silence_s: float, detail: str) -> Seen:
    answer = reading.answer
    headers = answer.headers if answer is not None else httpx.Headers()
    streamed = headers.get("content-type", "").startswith("text/event-stream")
    data, said = events(bytes(reading.body)) if streamed else ([], {})
    if outcome == s.CUT and streamed:
        outcome = s.CUT_STREAM
    if not outcome and answer is not None:
        outcome, more = _outcome(ask.kind, answer.status_code, data, bytes(reading.body))
        said = more | said
        if outcome != s.OK:
            detail = bytes(reading.body[-300:]).decode("utf-8", "replace")
    return Seen(
        number, ask.kind, reading.begin, round(total_s, 4), ask.limit_s, outcome,
        status=answer.status_code if answer is not None else 0,
        served_by=said.get("served-by", headers.get("x-devmentor-served-by", "")),
        cache=said.get("cache", headers.get("x-devmentor-cache", "")),
        context=said.get("context", headers.get("x-devmentor-context", "")),
        instance=headers.get("x-devmentor-instance", ""),
        first_byte_s=round(reading.first_byte_s, 4) if reading.first_byte_s is not None else None,
        silence_s=round(silence_s, 4),
        retry_after="retry-after" in headers,
        detail=detail[:300],
    )  # fmt: skip


def connection(base_url: str, ca: str, key: str) -> httpx.AsyncClient:
    """A client with a pool of connections of its own. `ca`: PEM; empty for plain HTTP."""
    return httpx.AsyncClient(
        base_url=base_url,
        headers={"Authorization": f"Bearer {key}"},
        verify=ssl.create_default_context(cadata=ca) if ca else True,
        timeout=httpx.Timeout(READ_S, connect=CONNECT_S, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=10),
        trust_env=False,
    )


@dataclass
class Load:
    """Requests of a fixed rate (per second) from a thread of its own. `start`, read `seen` at any time, `stop`.

    `behind_s` is how late a request was sent at worst: where that is more than a fraction of a second the machine was
    too busy for the times to be worth anything.
    """

    base_url: str
    ca: str
    key: str = field(repr=False)
    model: str
    rate: float
    plan: Callable[[int], Ask]
    seen: list[Seen] = field(default_factory=list)
    behind_s: float = 0.0

    def start(self) -> None:
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the schedule and waits for all answers. Raises what broke the generator itself."""
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:
            self._failure = error

    async def _send_all(self) -> None:
        clients = [connection(self.base_url, self.ca, self.key) for _ in range(CONNECTIONS)]

        async def one(number: int, _intended: float) -> None:
            client = clients[number % len(clients)]
            self.seen.append(await send(client, number, self.plan(number), self.model))

        try:
            self.behind_s = await until(self._over, self.rate, one)
        finally:
            for client in clients:
                with suppress(Exception):
                    await client.aclose()
