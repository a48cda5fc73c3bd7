"""A private PostgreSQL 15 on loopback that tests stop and start, and the API's own process beside it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

BIN = Path("/usr/lib/postgresql/15/bin")
SRC = Path(__file__).resolve().parents[4] / "services" / "src"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Postgres:
    """One cluster. As root its processes are postgres's: the server refuses to be root's."""

    def __init__(self) -> None:
        self.user = "postgres" if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="spool-pg-"))
        if self.user:
            shutil.chown(self.home, self.user)
        self.data, self.port = self.home / "data", free_port()
        self._run("initdb", "-D", self.data, "-U", "pbml", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"\nport = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n"
                "max_connections = 60\nshared_buffers = 16MB\nfull_page_writes = off\nwal_sync_method = fdatasync\n"
            )
        self.running = False

    def _run(self, program: str, *arguments) -> None:
        done = subprocess.run(
            [BIN / program, *map(str, arguments)],
            user=self.user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-l", self.home / "log", "-w", "-t", "60", "start")
        self.running = True

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")
        self.running = False

    def conninfo(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} dbname={database} user=pbml connect_timeout=2"

    def remove(self) -> None:
        if self.running:
            self.stop()
        shutil.rmtree(self.home)


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
                if httpx.get(f"{self.url}/health", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
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
