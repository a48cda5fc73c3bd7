"""The memory bench tells a leak from a cache that fills, and its table says so."""

import pytest

from tests.bench.qwen import memory


def run(mib_at: list[float]) -> list[memory.Sample]:
    return [(60.0 * minute, mib) for minute, mib in enumerate(mib_at)]


FILLING = run([100 + 10 * min(minute, 9) for minute in range(31)])
LEAKING = run([100 + 0.5 * minute for minute in range(31)])


def test_a_cache_that_fills_at_first_is_no_growth() -> None:
    assert memory.growth_per_hour(FILLING) == pytest.approx(0)
    assert memory.flat(FILLING)


def test_a_leak_is_seen() -> None:
    assert memory.growth_per_hour(LEAKING) == pytest.approx(30)
    assert not memory.flat(LEAKING)


def test_the_table_says_which_is_flat() -> None:
    systems = {
        "qwen": {"samples": FILLING, "right": 9, "failed": 0},
        "litellm": {"samples": LEAKING, "right": 8, "failed": 1},
    }
    text = memory.table({"systems": systems, "minutes": 30, "rate": 20, "cores": 2, "commit": "abc"})
    assert "| QWEN | 100 | 190 | 190 | 190 | +0.0 | yes | 9 | 0 |" in text
    assert "| LiteLLM | 100 | 105 | 115 | 115 | +30.0 | no | 8 | 1 |" in text
