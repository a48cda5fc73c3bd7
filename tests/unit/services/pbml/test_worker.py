"""The watch over the queue, with procrastinate's own worker on a queue in memory."""

import asyncio

import pytest
from pbml_doubles import Ledger
from procrastinate.exceptions import ConnectorException
from procrastinate.testing import InMemoryConnector
from prometheus_client import REGISTRY

from devmentor.pbml import jobs
from devmentor.pbml.embedder import EmbedderUnavailable, TextRefused
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.settings import Settings
from devmentor.pbml.worker import Worker


class Queue(jobs.Wakes, InMemoryConnector):
    """The first `lose` writes of a job's end are lost."""

    lose = 0

    async def finish_job_run(self, job_id, status, delete_job):
        if self.lose:
            self.lose -= 1
            raise ConnectorException("the connection broke")
        await super().finish_job_run(job_id, status, delete_job)


class Pipeline:
    """The next runs end with `failures`, one each."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.failures: list[Exception] = []
        self.release = asyncio.Event()
        self.release.set()

    async def run(self, _tenant, _document_id, version) -> None:
        self.runs.append(version)
        await self.release.wait()
        if self.failures:
            raise self.failures.pop(0)


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is in the queue's state
            await asyncio.sleep(0.01)


@pytest.fixture
async def queue():
    return Queue()


@pytest.fixture
async def worker(queue):
    made = Worker(Settings(tenants_file=None, worker_poll_s=0.02))
    made._pipeline = Pipeline()
    made.database = Ledger()
    made._queue = queue
    with made._app.replace_connector(queue):
        loops = [*made._loops(), asyncio.create_task(made._look())]
        yield made
        made._pipeline.release.set()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def defer(worker: Worker, version: int, lock: str = "t\nd") -> None:
    task = worker._app.configure_task(jobs.TASK, queue=jobs.QUEUE, lock=lock)
    await task.defer_async(tenant="t", document_id="d", version=version)


async def test_a_job_whose_end_was_not_written_does_not_hold_up_the_next(worker, queue):
    queue.lose = 1
    await defer(worker, 1)
    await defer(worker, 2)
    await until(lambda: queue.lose == 0 and not worker._under_way)
    await worker._requeue_lost()
    assert [job["status"] for job in queue.jobs.values()] == ["doing", "todo"], "once may be chance"
    await worker._requeue_lost()
    await until(lambda: not queue.jobs)
    assert worker._pipeline.runs == [1, 1, 2]


async def test_as_many_jobs_are_under_way_as_the_loops_may_have_together(worker, queue):
    worker._pipeline.release.clear()
    for number in range(40):
        await defer(worker, number, lock=f"document {number}")
    await until(lambda: len(worker._pipeline.runs) >= 32)
    await asyncio.sleep(0.2)
    assert len(worker._pipeline.runs) == 32
    assert len(worker._worker_ids) == 8
    worker._pipeline.release.set()
    await until(lambda: not queue.jobs)


async def test_a_job_that_runs_is_left_alone(worker, queue):
    worker._pipeline.release.clear()
    await defer(worker, 1)
    await until(lambda: worker._pipeline.runs)
    for _ in range(3):
        await worker._requeue_lost()
    assert [job["status"] for job in queue.jobs.values()] == ["doing"]
    worker._pipeline.release.set()
    await until(lambda: not queue.jobs)
    assert worker._pipeline.runs == [1]


async def test_waits_for_a_dependency_use_up_no_tries(worker, queue, monkeypatch):
    monkeypatch.setattr(jobs, "_LONGEST_WAIT_S", 0)
    away = [IndexUnavailable("away"), EmbedderUnavailable("away")] * 5
    worker._pipeline.failures = [*away, *[TextRefused("no")] * 4, *away]
    worker.database.accept(1)
    await defer(worker, 1)
    await until(lambda: not queue.jobs)
    assert not worker._pipeline.failures
    assert (worker.database.column("status"), worker.database.column("failed_runs")) == (["received"], [4])


async def test_a_version_that_fails_by_itself_is_parked_with_the_reason(worker, queue, monkeypatch):
    monkeypatch.setattr(jobs, "_LONGEST_WAIT_S", 0)
    worker._pipeline.failures = [IndexUnavailable("away"), *[TextRefused("no")] * 9]
    worker.database.accept(1)
    parked = REGISTRY.get_sample_value("pbml_versions_total", {"kind": "document", "result": "failed"}) or 0
    await defer(worker, 1)
    await until(lambda: [job["status"] for job in queue.jobs.values()] == ["failed"])
    assert len(worker._pipeline.runs) == 6
    assert (worker.database.statuses, worker.database.column("failure")) == (["failed"], ["TextRefused: no"])
    assert REGISTRY.get_sample_value("pbml_versions_total", {"kind": "document", "result": "failed"}) == parked + 1
