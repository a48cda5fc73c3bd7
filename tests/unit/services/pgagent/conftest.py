"""One real agent in pretended surroundings."""

import time

import pytest

from tests.unit.services.pgagent.pretended import CLOCK, FIRST, PretendedTime, Surroundings


def pytest_asyncio_loop_factories(config, item):
    """Tests here wait for nothing."""
    return {"pretended time": PretendedTime}


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(time, "time", CLOCK.time)
    monkeypatch.setattr(time, "monotonic", CLOCK.monotonic)


@pytest.fixture
async def surround(tmp_path, monkeypatch):
    """Makes the surroundings of an agent; see Surroundings."""
    made = []

    def make(node="pg2", rule=FIRST, duties=("postgres",), priorities=None, **settings):
        made.append(Surroundings(tmp_path, monkeypatch, node, rule, duties, priorities or {}, **settings))
        return made[-1]

    yield make
    for around in made:
        await around.end()
