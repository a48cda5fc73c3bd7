"""The bench's load generator: a stalled server's stall is in the latencies of all that it kept waiting."""

import asyncio
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.bench.qwen import load, report, systems


async def test_a_stall_counts_for_every_request_that_was_due_in_it() -> None:
    resume = asyncio.Event()
    begun: list[int] = []

    async def send(number: int) -> bool:
        begun.append(number)
        if number == 0:
            await asyncio.sleep(0.5)
            resume.set()
        await resume.wait()
        return True

    outcome = await load.run(send, rate=100, seconds=0.5)
    assert begun == list(range(50)), "the schedule does not wait for answers"
    assert outcome.failed == 0
    # Evenly spread over the stall: a generator that waited for each answer would have seen one slow request of 50.
    assert outcome.percentile(0.5) == pytest.approx(0.25, abs=0.08)
    assert outcome.percentile(1.0) >= 0.49


async def test_a_generator_that_is_late_says_so_and_counts_from_the_intended_start() -> None:
    async def send(number: int) -> bool:
        if number == 0:
            import time

            time.sleep(0.3)  # noqa: ASYNC251 - the generator itself is held up
        return True

    outcome = await load.run(send, rate=50, seconds=0.3)
    assert outcome.behind_s >= 0.2
    assert outcome.percentile(0.9) >= 0.2


async def test_failures_are_no_latencies() -> None:
    async def send(number: int) -> bool:
        if number % 3 == 0:
            raise OSError
        return number % 3 == 1

    outcome = await load.run(send, rate=300, seconds=0.1)
    assert (len(outcome.latencies_s), outcome.failed) == (10, 20)
    assert load.Outcome(1.0).percentile(0.5) == math.inf


async def test_a_server_that_answers_nothing_does_not_fill_the_memory() -> None:
    release = asyncio.Event()

    async def send(_number: int) -> bool:
        await release.wait()
        return True

    asyncio.get_running_loop().call_later(0.3, release.set)
    outcome = await load.run(send, rate=1000, seconds=0.1, most_waiting=10)
    assert outcome.failed == 90


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_percentiles_are_values_that_occurred(share: float, value: float) -> None:
    assert load.percentile([float(n) for n in range(100, 0, -1)], share) == value


def test_a_lock_with_a_malicious_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert systems.peer_lock().exists()
    lock = tmp_path / "litellm.lock"
    lock.write_text((systems.HERE / "litellm.lock").read_text())
    assert re.search(r"^litellm==\S+ ", lock.read_text(), re.MULTILINE)
    lock.write_text(re.sub(r"^litellm==\S+ ", "litellm==1.82.8 ", lock.read_text(), flags=re.MULTILINE))
    monkeypatch.setattr(systems, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="malicious"):
        systems.peer_lock()


def test_the_table_takes_the_floor_off() -> None:
    def system(p50: float, p99: float) -> dict[str, Any]:
        times = {"p50_ms": p50, "p99_ms": p99, "failed": 0, "generator_behind_ms": 0.5}
        kinds = {"fresh": times, "first_token": {**times, "p50_ms": p50 + 0.25, "failed": 1}, "cached": times}
        return {**kinds, "saturated": {"per_core_second": 900.0}, "memory_mib": [80.0, 81.0]}

    result = {"systems": {"floor": system(1, 2), "qwen": system(2.5, 6)}, "rate": 5, "seconds": 9, "cores": 2}
    text = report.table({**result, "load_before": 0.1, "commit": "abc"})
    assert "| QWEN | 2.50 | 6.00 | 1.50 | 4.00 | 1.50 | 4.00 | 6.00 | 900 | 80 to 81 | 1 | 0.5 |" in text
    assert report.picture(result).count("<rect") == 1 + 4
