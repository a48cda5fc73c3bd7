"""A private PostgreSQL that tests stop and start, a proxy before it, and the API's own process beside it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import private_postgres
from private_postgres import SMALL, free_port

SRC = Path(__file__).resolve().parents[4] / "services" / "src"


class Postgres(private_postgres.Postgres):
    """It keeps what it confirmed, and whoever connects while it is away is told soon."""

    def __init__(self) -> None:
        super().__init__({**SMALL, "full_page_writes": "off", "wal_sync_method": "fdatasync"})

    def conninfo(self, database: str | None = None, connect_timeout: int = 2) -> str:
        return super().conninfo(database, connect_timeout)


class Api:
    """`devmentor-pbml serve` as a process: killed and started again on the same spool."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._home = home
        self._environment = {**os.environ, "PYTHONPATH": str(SRC), "PBML_PORT": str(self.port), **environment}
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self._home / "api.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "devmentor.pbml", "serve"], env=self._environment, stdout=log, stderr=log
            )
        until = time.monotonic() + 180  # its clients take long to load where others work, too
        while time.monotonic() < until:
            assert self._process.poll() is None, (self._home / "api.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self._home / "api.log").read_text()[-3000:])

    def kill(self) -> None:
        """As a crash does: nothing is written any more."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As systemd does."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None


class Proxy:
    """Between psycopg and PostgreSQL. While `swallow` is set, a COMMIT goes through and its connection ends then."""

    def __init__(self, target: int) -> None:
        self.target, self.port, self.swallow = target, 0, False

    async def serve(self, reader, writer) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        committed = False

        async def up() -> None:
            nonlocal committed
            while data := await reader.read(65536):
                committed = committed or (self.swallow and b"COMMIT" in data)
                up_writer.write(data)

        async def down() -> None:
            while data := await up_reader.read(65536):
                if committed:
                    writer.transport.abort()
                    return
                writer.write(data)

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        up_writer.close()


@asynccontextmanager
async def swallowing_commits(target: int):
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
