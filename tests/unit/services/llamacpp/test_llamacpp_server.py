"""The engine's wrapper: settings, load, drain; and the real server with a real model, stopped in mid-answer."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from devmentor.llamacpp.server import Load, ProbeError, parameters, parse_load, wait_until_idle
from devmentor.llamacpp.settings import LlamacppSettings
from tools.models import write_tiny_qwen

ROOT = Path(__file__).resolve().parents[4]


class Readings:
    """A probe that gives what it was told, the last one for ever."""

    def __init__(self, *readings: Load | ProbeError) -> None:
        self.left = list(readings)
        self.asked = 0

    def __call__(self) -> Load:
        self.asked += 1
        reading = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(reading, ProbeError):
            raise reading
        return reading


BUSY, WAITING, IDLE = Load(1, 0), Load(0, 1), Load(0, 0)


def test_the_gauges_are_read_and_nothing_is_guessed() -> None:
    text = "# HELP x\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n"
    assert parse_load(text) == Load(2, 1)
    with pytest.raises(ProbeError):
        parse_load("llamacpp:requests_processing 2\n")


def test_draining_needs_two_idle_readings_in_a_row() -> None:
    readings = Readings(BUSY, IDLE, WAITING, IDLE, ProbeError("busy"), IDLE, IDLE)
    assert wait_until_idle(readings, 10)
    assert readings.asked == 7


def test_draining_ends_at_its_limit() -> None:
    began = time.monotonic()
    assert not wait_until_idle(Readings(BUSY), 0.3)
    assert time.monotonic() - began < 2


def test_the_context_of_a_slot_is_what_the_settings_say(tmp_path: Path) -> None:
    settings = LlamacppSettings(model=tmp_path / "m", alias="a", port=1, context=512, parallel=3, mode="embed")
    params = parameters(settings)
    assert params.n_ctx == 3 * 512
    assert params.n_ubatch == 512, "an encoder sees a text at once"
    assert params.embedding


@pytest.mark.parametrize("change", [{"host": "0.0.0.0"}, {"mode": "other"}, {"alias": ""}, {"port": 0}])
def test_wrong_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LlamacppSettings(**{"model": tmp_path / "m", "alias": "a", "port": 1, **change})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_qwen(path)
    return path


class Server:
    def __init__(self, model: Path, notify: socket.socket, **settings: str) -> None:
        self.port = free_port()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "services/src"),
            "NOTIFY_SOCKET": str(notify.getsockname()),
            "WATCHDOG_USEC": "400000",
            "LLAMACPP_MODEL": str(model),
            "LLAMACPP_ALIAS": "tiny",
            "LLAMACPP_PORT": str(self.port),
            "LLAMACPP_THREADS": "1",
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "devmentor.llamacpp"], env=environment, stderr=subprocess.PIPE, text=True
        )

    def request(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, None if body is None else json.dumps(body))
        return connection.getresponse()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(60)
        yield channel


def heard(notify: socket.socket, word: str) -> None:
    while word not in notify.recv(4096).decode():
        pass


def test_an_answer_in_progress_is_finished_after_sigterm(model: Path, notify: socket.socket) -> None:
    server = Server(model, notify, LLAMACPP_DRAIN_S="30")
    try:
        heard(notify, "READY=1")
        heard(notify, "WATCHDOG=1")
        body = {
            "messages": [{"role": "user", "content": "Talk."}],
            "max_tokens": 600,
            "ignore_eos": True,
            "stream": True,
        }
        response = server.request("POST", "/v1/chat/completions", body)
        first = response.readline()
        server.process.send_signal(signal.SIGTERM)
        heard(notify, "STOPPING=1")
        rest = response.read()
        assert first.startswith(b"data: ")
        assert rest.rstrip().endswith(b"data: [DONE]")
        _, errors = server.process.communicate(timeout=30)
        assert server.process.returncode == 0
        assert '"message": "drained"' in errors
    finally:
        server.stop()


def test_a_missing_model_is_named(tmp_path: Path, notify: socket.socket) -> None:
    server = Server(tmp_path / "none.gguf", notify)
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode != 0
    assert "none.gguf" in errors
