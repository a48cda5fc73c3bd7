"""A pretended engine in front of the real one: every 500th answer is an error 500, all others are the engine's own.

    python3 THIS_FILE LISTEN_PORT ENGINE_PORT ERRS_FIRST ERRS_EACH

It runs on a QWEN host, which has no more than Python 3. Until SIGUSR1 it only hands on. From then on request number
ERRS_FIRST for a chat fails, and each ERRS_EACH-th after it. At its end it writes "errors N" to standard output.
"""

import asyncio
import signal
import sys

ERROR = b'{"error":{"message":"pretended error","type":"server_error","code":500}}'
REFUSAL = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: " + str(len(ERROR)).encode() + b"\r\n\r\n" + ERROR
)


class Proxy:
    """One request for each connection: `Connection: close` is put into it."""

    def __init__(self, engine_port: int, first: int, each: int) -> None:
        self.engine_port, self.first, self.each = engine_port, first, each
        self.armed = False
        self.requests = self.errors = 0

    def fails(self, path: bytes) -> bool:
        if not self.armed or b"/chat/completions" not in path:
            return False
        self.requests += 1
        wrong = self.requests >= self.first and (self.requests - self.first) % self.each == 0
        self.errors += wrong
        return wrong

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *fields = head[:-4].split(b"\r\n")
            named = {name.strip().lower(): value.strip() for name, _, value in (f.partition(b":") for f in fields)}
            body = await reader.readexactly(int(named.get(b"content-length", b"0")))
            if self.fails(first.split(b" ")[1]):
                writer.write(REFUSAL)
                await writer.drain()
                return
            kept = [field for field in fields if not field.lower().startswith((b"connection:", b"expect:"))]
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.engine_port)
            upstream.write(b"\r\n".join([first, *kept, b"Connection: close"]) + b"\r\n\r\n" + body)
            leaving = asyncio.ensure_future(reader.read(1))
            handing_on = asyncio.ensure_future(self.hand_on(answers, writer))
            # A client that leaves ends the engine's work, as it does without us.
            await asyncio.wait({leaving, handing_on}, return_when=asyncio.FIRST_COMPLETED)
            for task in (leaving, handing_on):
                task.cancel()
            await asyncio.gather(leaving, handing_on, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the connection ends, which says as much
        finally:
            for end in (upstream, writer):
                if end is not None:
                    end.close()

    async def hand_on(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await answers.read(65536):
            writer.write(chunk)
            await writer.drain()


async def main(listen: int, engine_port: int, first: int, each: int) -> None:
    proxy, over = Proxy(engine_port, first, each), asyncio.Event()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(proxy, "armed", True))
    loop.add_signal_handler(signal.SIGTERM, over.set)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", listen, limit=2**20)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    await over.wait()
    server.close()
    sys.stdout.write(f"errors {proxy.errors}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:5])))
