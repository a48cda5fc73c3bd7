"""Runs vLLM's API server and tells systemd the truth about it.

vLLM does not speak sd_notify, answers /health while its engine is stuck, and drains by itself once it was told to
(`--shutdown-timeout`). So it is ready when it generated a token; the watchdog is fed while tokens move; a SIGTERM is
passed on and waited for.
"""

import http.client
import json
import logging
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from devmentor.common.notify import notify, watchdog_interval_s
from devmentor.vllm.settings import VllmSettings

log = logging.getLogger(__name__)

_GAUGE = re.compile(r"^vllm:num_requests_(running|waiting)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_COUNTER = re.compile(r"^vllm:(?:prompt|generation)_tokens_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_POLL_S = 0.5
# vLLM ends its processes after the drain; beyond this the unit's TimeoutStopSec would kill all of them anyway.
_TEARDOWN_S = 10.0


class ProbeError(Exception):
    """The engine did not answer, or not with what was asked for."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that are computed, requests that wait, and all tokens (of prompts and answers) so far."""

    running: int
    waiting: int
    tokens: float


class Engine(Protocol):
    """What the keeper asks an engine. Both raise ProbeError."""

    def load(self) -> Load: ...

    def generate(self) -> None: ...


def parse_load(exposition: str) -> Load:
    """vLLM's /metrics; engines of several cores have a line for each. Raises ProbeError where one is missing."""
    gauges: dict[str, float] = {}
    try:
        for name, value in _GAUGE.findall(exposition):
            gauges[name] = gauges.get(name, 0.0) + float(value)
        tokens = [float(value) for value in _COUNTER.findall(exposition)]
        if not tokens:
            raise KeyError("tokens")
        return Load(int(gauges["running"]), int(gauges["waiting"]), sum(tokens))
    except (KeyError, ValueError) as error:
        raise ProbeError(f"/metrics lacks vLLM's gauges or counters: {error}") from error


class HttpEngine:
    """vLLM over loopback."""

    def __init__(self, port: int, alias: str, timeout_s: float) -> None:
        self._port = port
        self._alias = alias
        self._timeout_s = timeout_s

    def load(self) -> Load:
        return parse_load(self._ask("GET", "/metrics"))

    def generate(self) -> None:
        """One token. /health would be answered by the server's own process, whatever the engine does."""
        body = {"model": self._alias, "prompt": "ping", "max_tokens": 1, "temperature": 0}
        answer = self._ask("POST", "/v1/completions", json.dumps(body))
        if '"choices"' not in answer:
            raise ProbeError(f"/v1/completions: {answer[:200]!r} is no completion")

    def _ask(self, method: str, path: str, body: str | None = None) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(f"{path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ProbeError(f"{path}: status {response.status}: {text[:200]}")
        return text


class Progress:
    """Whether the engine makes any: a busy one's counters must have grown since the last look, an idle one must
    generate."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens: float | None = None

    def look(self) -> str:
        """What was seen, in words. Raises ProbeError where nothing moves."""
        load = self._engine.load()
        before, self._tokens = self._tokens, load.tokens
        busy = load.running + load.waiting
        if busy == 0:
            self._engine.generate()
            return "idle"
        if before is None or load.tokens > before:
            return f"{load.running} computed, {load.waiting} waiting"
        raise ProbeError(f"{busy} requests and no token since the last look")


def serve(settings: VllmSettings) -> int:
    """Keep the engine until SIGTERM or SIGINT, let it drain; its exit status, 0 after a stop that was asked for."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    # Its folder as it is now: processes that the engine starts stay in its release when `current` has moved. The
    # interpreter itself is a link that must not be followed, or it would not be the environment's.
    python = settings.python.parent.resolve() / settings.python.name
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", *settings.arguments]
    process = subprocess.Popen(command)
    try:
        engine = HttpEngine(settings.port, settings.alias, settings.probe_s)
        if _wait_until_ready(process, engine, stop, settings.start_s):
            notify("READY=1", f"STATUS=serving {settings.alias}")
            log.info("ready", extra={"model": settings.alias, "port": settings.port})
            _watch(process, engine, stop, settings.alias)
        return _end(process, stop, settings.drain_s)
    finally:
        if process.poll() is None:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], engine: Engine, stop: threading.Event, limit_s: float) -> bool:
    """Wait for the first token; False where the engine ended or a stop was asked for instead."""
    end = time.monotonic() + limit_s
    reason = "nothing was asked yet"
    while process.poll() is None and not stop.wait(_POLL_S):
        try:
            engine.generate()
            return True
        except ProbeError as error:
            reason = str(error)
        if time.monotonic() >= end:
            log.error("no token in the time to start", extra={"limit_s": limit_s, "reason": reason})
            return False
    return False


def _watch(process: subprocess.Popen[bytes], engine: Engine, stop: threading.Event, alias: str) -> None:
    """Feed the watchdog while tokens move, until the engine ends or a stop is asked for."""
    progress = Progress(engine)
    interval = watchdog_interval_s() or 15.0
    due = time.monotonic() + interval
    while process.poll() is None and not stop.wait(_POLL_S):
        if time.monotonic() < due:
            continue
        due = time.monotonic() + interval
        try:
            seen = progress.look()
        except ProbeError as error:
            if process.poll() is None and not stop.is_set():
                log.error("the engine makes no progress, watchdog not fed", extra={"reason": str(error)})
            continue
        notify("WATCHDOG=1", f"STATUS=serving {alias}: {seen}")


def _end(process: subprocess.Popen[bytes], stop: threading.Event, drain_s: float) -> int:
    """Pass a stop on and wait for the drain. An engine that ended by itself, or did not start, is an error."""
    if not stop.is_set():
        status = process.poll()
        log.error("the engine ended" if status is not None else "the engine did not start", extra={"status": status})
        return 1
    notify("STOPPING=1", "STATUS=draining")
    log.info("draining", extra={"limit_s": drain_s})
    process.terminate()
    try:
        process.wait(drain_s + _TEARDOWN_S)
    except subprocess.TimeoutExpired:
        log.warning("stopped with requests in flight")
        return 1
    log.info("drained")
    return 0
