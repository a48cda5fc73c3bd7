"""Runs llama.cpp's server (the xllamacpp wheel) until SIGTERM, then lets requests in flight finish.

The library starts the server in threads of this process. What it lacks as a service is added around it: systemd learns
when it listens, a watchdog restarts it when inference no longer turns, and a stop drains.
"""

import http.client
import logging
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, Protocol

import xllamacpp

from devmentor.common.notify import notify, watchdog_interval_s
from devmentor.llamacpp.settings import LlamacppSettings

log = logging.getLogger(__name__)

_METRIC = re.compile(r"^llamacpp:(requests_processing|requests_deferred) (\S+)", re.MULTILINE)
_POLL_S = 0.1
_PROBE_S = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that a slot computes, and requests that wait for one."""

    processing: int
    waiting: int

    @property
    def idle(self) -> bool:
        return self.processing == 0 and self.waiting == 0


class ProbeError(Exception):
    """The server did not say how busy it is."""


class Probe(Protocol):
    """Asks how busy the server is. Raises ProbeError."""

    def __call__(self) -> Load: ...


def parse_load(exposition: str) -> Load:
    """The two gauges of llama.cpp's /metrics. Raises ProbeError where one is missing."""
    found = dict(_METRIC.findall(exposition))
    try:
        return Load(int(float(found["requests_processing"])), int(float(found["requests_deferred"])))
    except (KeyError, ValueError) as error:
        raise ProbeError(f"/metrics has no usable request gauges: {error}") from error


def http_probe(host: str, port: int, timeout_s: float = _PROBE_S) -> Probe:
    """Reads /metrics. Unlike /health, which the HTTP thread answers by itself, this is answered by the inference loop
    between two batches: an answer means that the loop turns."""

    def probe() -> Load:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            body = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(f"/metrics: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ProbeError(f"/metrics: status {response.status}")
        return parse_load(body)

    return probe


def wait_until_idle(probe: Probe, limit_s: float) -> bool:
    """Wait for all requests to finish; False where some are left after `limit_s`.

    Two idle readings in a row are asked for: a request is counted only once it left the HTTP thread, and its answer's
    last bytes are sent just after the slot is free.
    """
    end = time.monotonic() + limit_s
    idle = 0
    while True:
        try:
            idle = idle + 1 if probe().idle else 0
        except ProbeError as error:
            idle = 0
            log.warning("load not known while draining", extra={"reason": str(error)})
        if idle >= 2:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL_S)


def parameters(settings: LlamacppSettings) -> xllamacpp.CommonParams:
    """Settings in llama.cpp's terms; its n_ctx is the sum over the slots."""
    params = xllamacpp.CommonParams()
    params.model.path = str(settings.model)
    params.model_alias = {settings.alias}
    params.hostnames = [settings.host]
    params.port = settings.port
    params.n_ctx = settings.context * settings.parallel
    params.n_parallel = settings.parallel
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    params.n_threads_http = settings.http_threads
    params.n_predict = settings.max_answer
    params.cache_ram_mib = settings.prompt_cache_mib
    params.verbosity = settings.verbosity
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.offline = True
    params.ui = False
    params.use_jinja = True
    if settings.mode == "embed":
        params.embedding = True
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{settings.pooling.upper()}")
        # An encoder sees a text at once or not at all: the batch must hold the longest one.
        params.n_batch = params.n_ubatch = settings.context
    return params


def serve(settings: LlamacppSettings) -> NoReturn:
    """Serve until SIGTERM or SIGINT, drain, exit."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)

    if not settings.model.is_file():
        raise FileNotFoundError(f"LLAMACPP_MODEL={settings.model}: no such file")
    server = xllamacpp.Server(parameters(settings))
    probe = http_probe(settings.host, settings.port)
    probe()
    log.info("listening", extra={"address": server.listening_address, "model": settings.alias, "mode": settings.mode})
    notify("READY=1", f"STATUS=serving {settings.alias}")

    interval = watchdog_interval_s() or _PROBE_S
    while not stop.wait(interval):
        try:
            load = probe()
        except ProbeError as error:
            log.error("inference does not answer, watchdog not fed", extra={"reason": str(error)})
            continue
        notify("WATCHDOG=1", f"STATUS=serving {settings.alias}: {load.processing} computed, {load.waiting} waiting")

    notify("STOPPING=1", "STATUS=draining")
    log.info("draining", extra={"limit_s": settings.drain_s})
    drained = wait_until_idle(probe, settings.drain_s)
    log.log(logging.INFO if drained else logging.WARNING, "drained" if drained else "stopped with requests in flight")
    # The library's destructor neither drains nor returns while a client holds a connection open.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
