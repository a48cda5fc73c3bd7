"""The systems that are compared, each a process of its own on loopback, and what they cost."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.qwen.pretended_upstream import MODEL
from tools.runs import ROOT

KEY = "sk-key-of-bench"
HERE = Path(__file__).parent
PEER = ROOT / ".cache" / "bench" / "litellm"
MALICIOUS = ("1.82.7", "1.82.8")  # of LiteLLM on PyPI; never to be installed
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Running:
    """A system that answers."""

    name: str
    url: str
    pid: int

    def _family(self) -> list[int]:
        found = [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(FileNotFoundError):  # a thread that has ended since
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def cpu_s(self) -> float:
        """Processor seconds of the process and its children so far."""
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in self._family()) / _TICKS

    def memory_mib(self) -> float:
        """Resident memory of the process and its children."""
        return sum(int(_stat(pid)[21]) for pid in self._family()) * _PAGE / 2**20


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the command's name, state first (man proc_pid_stat, fields 3 and on)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peer_lock() -> Path:
    """The peer's lock file. Raises SystemExit where it pins a release that was malicious."""
    lock = HERE / "litellm.lock"
    if any(line.startswith(f"litellm=={version} ") for version in MALICIOUS for line in lock.read_text().splitlines()):
        raise SystemExit(f"{lock} pins a malicious release of LiteLLM ({', '.join(MALICIOUS)}): pin another one")
    return lock


def install_peer() -> Path:
    """LiteLLM in an environment of its own, by hashes; where it is. Raises CalledProcessError."""
    lock = peer_lock()
    stamp, wanted = PEER / "lock.sha256", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run(["uv", "venv", "-q", "--clear", "--python", sys.executable, str(PEER)], check=True)
        install = ["uv", "pip", "install", "-q", "--require-hashes", "-r", str(lock)]
        subprocess.run(install, env={**os.environ, "VIRTUAL_ENV": str(PEER)}, check=True)
        stamp.write_text(wanted)
    return PEER / "bin" / "litellm"


@contextmanager
def process(name: str, command: list[str], environment: Mapping[str, str], url: str, ready: str) -> Iterator[Running]:
    """Runs until the block ends. Raises SystemExit where it does not answer `ready` in two minutes."""
    logs = ROOT / ".cache" / "bench" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not _answers(url + ready):
                if started.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{name} does not answer at {url}{ready}; see {log.name}")
                time.sleep(0.2)
            yield Running(name, url, started.pid)
        finally:
            started.terminate()
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def floor() -> Iterator[Running]:
    """The upstream itself, without anything before it."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.qwen.pretended_upstream", str(port)]
    with process("floor", command, {"PYTHONPATH": str(ROOT)}, f"http://127.0.0.1:{port}", "/health") as running:
        yield running


@contextmanager
def qwen(upstream: str) -> Iterator[Running]:
    """QWEN with its keys, limits, process cache and metrics; PBML context off."""
    port, directory = free_port(), ROOT / ".cache" / "bench"
    tenants = directory / "tenants.json"
    tenants.write_text(json.dumps([{"tenant": "bench", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
    environment = {
        "PYTHONPATH": str(ROOT / "services" / "src"),
        "QWEN_PORT": str(port),
        "QWEN_MODELS": json.dumps({MODEL: {"url": upstream}}),
        "QWEN_TENANTS_FILE": str(tenants),
        "QWEN_LOG_LEVEL": "warning",
        "QWEN_DRAIN_DELAY_S": "0",
    }
    command = [sys.executable, "-m", "devmentor.qwen"]
    with process("qwen", command, environment, f"http://127.0.0.1:{port}", "/health") as running:
        yield running


@contextmanager
def litellm(upstream: str) -> Iterator[Running]:
    """LiteLLM's proxy with litellm.yml."""
    port = free_port()
    environment = {
        "BENCH_UPSTREAM": f"{upstream}/v1",
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PATH": f"{PEER / 'bin'}:{os.environ['PATH']}",
    }
    config = ["--config", str(HERE / "litellm.yml"), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    command = [str(install_peer()), *config, "--telemetry", "False"]
    with process("litellm", command, environment, f"http://127.0.0.1:{port}", "/health/liveliness") as running:
        yield running


@contextmanager
def everything(names: list[str]) -> Iterator[list[Running]]:
    """The floor, and the named systems before it, all at once: measured one after the other in the same run."""
    with ExitStack() as stack:
        upstream = stack.enter_context(floor())
        makers = {"qwen": qwen, "litellm": litellm}
        yield [upstream, *(stack.enter_context(makers[name](upstream.url)) for name in names)]
