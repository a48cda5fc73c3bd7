"""How answers reach a client: streams that ping, and notice when their client leaves."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from devmentor.common import tasks
from devmentor.common.errors import ApiError
from devmentor.qwen import metrics, sse
from devmentor.qwen.answers import Streamed, Whole

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client closed the connection before its answer began."""


async def finished(receive: Receive, task: "asyncio.Task[T]", patience_s: float | None = None) -> bool:
    """Wait for `task`; False where it takes longer than `patience_s`, and goes on.

    Raises ClientLeftError, with the task cancelled, when the client closes the connection first.
    """
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, leaving}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and leaving.done():
            raise ClientLeftError
    except BaseException:
        await tasks.end(task)
        raise
    finally:
        await tasks.end(leaving)
    return task.done()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An SSE response. A comment is sent in long silences; a client that leaves ends the engine's work too."""

    def __init__(
        self,
        blocks: AsyncGenerator[bytes],
        close: Callable[[], Awaitable[None]],
        headers: dict[str, str],
        ping_s: float,
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._blocks = blocks
        self._close = close
        self._ping_s = ping_s
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send_all(send))
        pinging = asyncio.create_task(self._ping(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                metrics.CANCELLED.labels("chat").inc()
        finally:
            await tasks.end(sending, pinging, leaving)
            await self._blocks.aclose()
            await self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for block in self._blocks:
            self._sent_at = time.monotonic()
            await send({"type": "http.response.body", "body": block, "more_body": True})
        self._sent_at = float("inf")  # nothing may follow the last part
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet >= self._ping_s:
                self._sent_at = time.monotonic()
                await send({"type": "http.response.body", "body": sse.PING, "more_body": True})
            else:
                await asyncio.sleep(min(self._ping_s, self._ping_s - quiet))


class LateAnswer:
    """A stream whose first event is long in coming: headers and pings go out first, and what served the answer is
    told by a comment in the stream. An error is told as an event."""

    def __init__(self, task: "asyncio.Task[Whole | Streamed]") -> None:
        self._task = task

    async def blocks(self) -> AsyncGenerator[bytes]:
        yield sse.PING
        try:
            answer = await asyncio.shield(self._task)
        except ApiError as error:
            yield sse.data(error.body())
            return
        assert isinstance(answer, Streamed)
        served = answer.served
        yield f": served-by={served.by} cache={served.cache} context={served.context}\n\n".encode()
        async for block in answer.blocks:
            yield block

    async def close(self) -> None:
        await tasks.end(self._task)
        if not self._task.cancelled() and self._task.exception() is None:
            answer = self._task.result()
            if isinstance(answer, Streamed):
                await answer.blocks.aclose()
                await answer.close()
