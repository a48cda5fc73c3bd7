"""The batch manager: company, age, bounds, and failures that stay where they belong."""

import asyncio

import pytest

from devmentor.pbml.batch import BatchManager
from devmentor.pbml.embedder import EmbedderUnavailable, TextRefused


class Endpoint:
    def __init__(self, delay: float = 0.0) -> None:
        self.calls: list[list[str]] = []
        self.delay = delay
        self.running = self.most = 0
        self.refuse: set[str] = set()
        self.away = False

    async def __call__(self, texts):
        self.calls.append(list(texts))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.delay)
            if self.away:
                raise EmbedderUnavailable("away")
            if self.refuse & set(texts):
                raise TextRefused("no")
            return [[float(len(text))] for text in texts]
        finally:
            self.running -= 1


def _refused(error: Exception) -> bool:
    return isinstance(error, TextRefused)


@pytest.fixture
async def manager():
    managers = []

    async def make(endpoint: Endpoint, **options) -> BatchManager:
        made = BatchManager("embed", endpoint, own_fault=_refused, **{"max_size": 8, "max_age_s": 0.02, **options})
        managers.append(made)
        return made

    yield make
    for made in managers:
        await made.close()


async def test_documents_share_a_call(manager):
    endpoint = Endpoint()
    batches = await manager(endpoint)
    results = await asyncio.gather(*(batches.submit(["x" * n, "y" * n]) for n in (1, 2, 3)))
    assert results == [[[1.0], [1.0]], [[2.0], [2.0]], [[3.0], [3.0]]]
    assert len(endpoint.calls) == 1


async def test_a_batch_is_never_larger_than_allowed_and_order_is_kept(manager):
    endpoint = Endpoint()
    batches = await manager(endpoint)
    assert await batches.submit(["z" * n for n in range(1, 101)]) == [[float(n)] for n in range(1, 101)]
    assert max(len(call) for call in endpoint.calls) <= 8


async def test_calls_in_flight_are_bounded(manager):
    endpoint = Endpoint(delay=0.01)
    batches = await manager(endpoint, in_flight=2)
    await batches.submit(["t"] * 80)
    assert endpoint.most == 2


async def test_a_refused_text_fails_alone(manager):
    endpoint = Endpoint()
    endpoint.refuse = {"poison"}
    batches = await manager(endpoint)
    good, bad = await asyncio.gather(batches.submit(["fine"]), batches.submit(["poison"]), return_exceptions=True)
    assert good == [[4.0]]
    assert isinstance(bad, TextRefused)


async def test_an_endpoint_that_goes_away_is_not_asked_for_each_of_a_batch(manager):
    endpoint = Endpoint()
    endpoint.refuse = {"poison"}
    batches = await manager(endpoint)

    async def leave(texts):
        if len(texts) == 1:
            endpoint.away, endpoint.refuse = True, set()
        return await endpoint(texts)

    batches._call = leave
    texts = ("a", "poison", "b", "c")
    results = await asyncio.gather(*(batches.submit([text]) for text in texts), return_exceptions=True)
    assert [type(result) for result in results] == [EmbedderUnavailable] * 4
    assert endpoint.calls == [list(texts), ["a"]]


async def test_a_caller_that_leaves_at_its_refused_text_takes_nobody_along(manager):
    endpoint = Endpoint(delay=0.01)
    endpoint.refuse = {"poison"}
    batches = await manager(endpoint)
    bad, good = await asyncio.gather(batches.submit(["poison", "a"]), batches.submit(["bb"]), return_exceptions=True)
    assert isinstance(bad, TextRefused)
    assert good == [[2.0]]


async def test_an_absent_endpoint_fails_all_and_the_next_try_works(manager):
    endpoint = Endpoint()
    endpoint.away = True
    batches = await manager(endpoint)
    with pytest.raises(EmbedderUnavailable):
        await batches.submit(["a", "b"])
    endpoint.away = False
    assert await batches.submit(["a"]) == [[1.0]]


async def test_a_cancelled_caller_does_not_stop_the_others(manager):
    endpoint = Endpoint(delay=0.05)
    batches = await manager(endpoint)
    leaving = asyncio.create_task(batches.submit(["a"]))
    staying = asyncio.create_task(batches.submit(["bb"]))
    await asyncio.sleep(0.03)
    leaving.cancel()
    assert await staying == [[2.0]]


async def test_close_releases_who_waits(manager):
    endpoint = Endpoint(delay=10)
    batches = await manager(endpoint, in_flight=1)
    waiting = asyncio.create_task(batches.submit(["a"] * 60))
    await asyncio.sleep(0.05)
    await batches.close()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 1)


async def test_a_call_takes_what_came_while_the_one_before_ran(manager):
    endpoint = Endpoint(delay=0.02)
    batches = await manager(endpoint, in_flight=1, max_age_s=0)
    first = asyncio.create_task(batches.submit(["a"]))
    await asyncio.sleep(0.01)
    more = [asyncio.create_task(batches.submit([text])) for text in ("bb", "ccc", "dddd")]
    assert await first == [[1.0]]
    assert await asyncio.gather(*more) == [[[2.0]], [[3.0]], [[4.0]]]
    assert endpoint.calls == [["a"], ["bb", "ccc", "dddd"]]


async def test_what_comes_as_the_last_call_ends_is_not_forgotten(manager):
    endpoint = Endpoint()
    batches = await manager(endpoint, in_flight=1, max_age_s=0)
    for n in range(200):
        # Each at another turn of the loop after the answer before it.
        first = asyncio.create_task(batches.submit(["a"]))
        for _ in range(n % 20):
            await asyncio.sleep(0)
        assert await asyncio.wait_for(batches.submit(["bb"]), 1) == [[2.0]]
        await first


async def test_nothing_is_asked_for_after_the_close(manager):
    endpoint = Endpoint()
    batches = await manager(endpoint)
    await batches.close()
    with pytest.raises(asyncio.CancelledError):
        await batches.submit(["a"])
    assert endpoint.calls == []
