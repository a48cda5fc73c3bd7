"""The keeper of vLLM: what it tells systemd, and that a stop reaches the engine and waits for it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devmentor.vllm.keeper import Load, ProbeError, Progress, parse_load

ROOT = Path(__file__).resolve().parents[4]


def test_the_gauges_are_read_and_nothing_is_guessed() -> None:
    text = (
        'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        'vllm:num_requests_waiting{engine="0"} 4.0\nvllm:num_requests_waiting_by_reason{reason="x"} 9.0\n'
        "vllm:prompt_tokens_total 10\nvllm:generation_tokens_total 5\nvllm:prompt_tokens_by_source_total 99\n"
    )
    assert parse_load(text) == Load(3, 4, 15.0)
    for gone in ("num_requests_running", "num_requests_waiting{", "_tokens_total"):
        lines = "".join(line for line in text.splitlines(keepends=True) if gone not in line)
        with pytest.raises(ProbeError):
            parse_load(lines)


class Told:
    """An engine that answers what it was told."""

    def __init__(self, *loads: Load, frozen: bool = False) -> None:
        self.loads = list(loads)
        self.frozen = frozen
        self.generated = 0

    def load(self) -> Load:
        return self.loads.pop(0)

    def generate(self) -> None:
        if self.frozen:
            raise ProbeError("timed out")
        self.generated += 1


def test_a_busy_engine_whose_tokens_move_is_left_alone() -> None:
    engine = Told(Load(1, 0, 5), Load(1, 3, 6))
    progress = Progress(engine)
    assert progress.look() == "1 computed, 0 waiting"
    assert progress.look() == "1 computed, 3 waiting"
    assert engine.generated == 0


def test_a_busy_engine_whose_tokens_stand_still_is_stuck() -> None:
    progress = Progress(Told(Load(1, 0, 5), Load(1, 0, 5)))
    progress.look()
    with pytest.raises(ProbeError, match="no token"):
        progress.look()


def test_an_idle_engine_must_generate() -> None:
    engine = Told(Load(0, 0, 5))
    assert Progress(engine).look() == "idle"
    assert engine.generated == 1
    with pytest.raises(ProbeError, match="timed out"):
        Progress(Told(Load(0, 0, 5), frozen=True)).look()


class Unit:
    """The keeper as systemd would run it, and what it said on the notification socket."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        package = folder / "vllm/entrypoints/openai"
        package.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("fake_vllm.py"), package / "api_server.py")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(folder / "notify"))
        self.channel.settimeout(0.1)
        self.said: list[str] = []
        environment = {
            **os.environ,
            "PYTHONPATH": f"{folder}:{ROOT / 'services/src'}:{ROOT}",
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": "1000000",
            "KEEPER_PYTHON": sys.executable,
            "KEEPER_ARGUMENTS": json.dumps([f"--port={self.port}", "--served-model-name=m"]),
            "KEEPER_ALIAS": "m",
            "KEEPER_PORT": str(self.port),
            "KEEPER_PROBE_S": "0.5",
            "KEEPER_DRAIN_S": "5",
            **settings,
        }
        # A session of its own: what the keeper leaves goes with it, as a unit's cgroup would.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "devmentor.vllm"], env=environment, start_new_session=True
        )

    def until(self, condition: Callable[[], bool], limit_s: float = 30) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, self.said
            self.hear()

    def hear(self) -> None:
        with contextlib.suppress(TimeoutError):
            self.said += self.channel.recv(4096).decode().splitlines()

    def fed(self) -> int:
        return self.said.count("WATCHDOG=1")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.channel.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Unit]]:
    units: list[Unit] = []

    def begin(**settings: str) -> Unit:
        units.append(Unit(tmp_path, **settings))
        return units[-1]

    yield begin
    for unit in units:
        unit.end()


def test_it_is_ready_with_a_token_fed_while_tokens_move_and_drains(start: Callable[..., Unit], tmp_path: Path) -> None:
    (tmp_path / "frozen").touch()
    unit = start()
    unit.until((tmp_path / "arguments").exists)
    for _ in range(15):
        unit.hear()
    assert "READY=1" not in unit.said, "an engine that generates nothing is not ready"
    (tmp_path / "frozen").unlink()
    unit.until(lambda: "READY=1" in unit.said)
    unit.until(lambda: unit.fed() >= 2)
    assert json.loads((tmp_path / "arguments").read_text()) == [f"--port={unit.port}", "--served-model-name=m"]

    (tmp_path / "slow").touch()
    unit.process.send_signal(signal.SIGTERM)
    unit.until((tmp_path / "terminated").exists)
    assert unit.process.poll() is None, "it waits for the drain"
    assert unit.process.wait(10) == 0
    assert (tmp_path / "drained").exists()
    unit.hear()
    assert "STOPPING=1" in unit.said


@pytest.mark.parametrize("state", ["frozen", "busy"])
def test_an_engine_without_progress_is_not_fed(start: Callable[..., Unit], tmp_path: Path, state: str) -> None:
    unit = start()
    unit.until(lambda: unit.fed() >= 1)
    (tmp_path / state).touch()
    time.sleep(1.5)  # a look that was under way
    for _ in range(5):
        unit.hear()
    before = unit.fed()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        unit.hear()
    assert unit.fed() == before
    (tmp_path / state).unlink()
    unit.until(lambda: unit.fed() > before)


def test_an_engine_that_ends_takes_the_unit_with_it(start: Callable[..., Unit], tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    assert start().process.wait(30) == 1


def test_an_engine_that_does_not_start_in_time_is_given_up(start: Callable[..., Unit], tmp_path: Path) -> None:
    (tmp_path / "frozen").touch()
    unit = start(KEEPER_START_S="1", KEEPER_PROBE_S="0.3")
    assert unit.process.wait(30) == 1
    assert "READY=1" not in unit.said


def test_a_setting_that_is_missing_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "devmentor.vllm"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'services/src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "devmentor-vllm: " in done.stderr
    assert "python" in done.stderr
