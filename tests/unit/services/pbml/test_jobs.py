"""Which failures are tried again, and when; jobs that are fetched and ended together, on a real PostgreSQL."""

import asyncio
from types import SimpleNamespace

import private_ledger
import procrastinate
import pytest
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status
from procrastinate.sql import queries
from psycopg_pool import AsyncConnectionPool

from devmentor.pbml.db import DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import EmbedderUnavailable, TextRefused
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.jobs import QUEUE, TASK, Connector, GivenUp, Retry, create


def decide(error: BaseException, attempts: int):
    return Retry().get_retry_decision(exception=error, job=SimpleNamespace(attempts=attempts))


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable(), OutcomeUnknown(), EmbedderUnavailable(), IndexUnavailable(), TextRefused()]
)
@pytest.mark.parametrize(("attempts", "seconds"), [(0, 1), (3, 8), (5, 30), (1000, 30)])
def test_the_pause_grows_to_a_bound(monkeypatch, error, attempts, seconds):
    monkeypatch.setattr("devmentor.pbml.jobs.RetryDecision", lambda retry_in: retry_in)
    assert decide(error, attempts) == {"seconds": seconds}


@pytest.mark.parametrize("attempts", [0, 1000])
def test_a_version_that_was_given_up_is_left(attempts):
    assert decide(GivenUp("no"), attempts) is None


def test_a_stopping_worker_gives_the_job_back():
    assert decide(asyncio.CancelledError(), 1000) is not None


@pytest.mark.parametrize("name", ["execute_query_async", "execute_query_one_async", "execute_query_all_async"])
async def test_a_statement_on_a_pooler_that_stands_still_ends_as_procrastinates_own_error(monkeypatch, name):
    ended = []

    async def still(_self, _query, **_arguments):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    monkeypatch.setattr(procrastinate.PsycopgConnector, name, still)
    async with asyncio.timeout(2):
        with pytest.raises(ConnectorException, match=r"no answer within 0\.05 s"):
            await getattr(Connector(0.05), name)("SELECT 1")
    assert ended == [name]


async def test_an_answer_in_time_passes_the_limit(monkeypatch):
    async def rows(_self, query, **arguments):
        return [{"query": query, **arguments}]

    monkeypatch.setattr(procrastinate.PsycopgConnector, "execute_query_all_async", rows)
    assert await Connector(1).execute_query_all_async("SELECT 1", a=2) == [{"query": "SELECT 1", "a": 2}]


@pytest.fixture(scope="module")
def server():
    with private_ledger.prepared() as conninfo:
        yield conninfo


@pytest.fixture
async def queue(server):
    """The queue in a database of its own, with the connector that the worker has."""
    with private_ledger.database(server, "queue", "prepared") as conninfo:
        app = create(Connector(5))
        app.task(name=TASK, queue=QUEUE)(lambda: None)
        pool = AsyncConnectionPool(conninfo, kwargs={"autocommit": True}, min_size=1, open=False)
        async with pool, app.open_async(pool):
            yield app


@pytest.mark.parametrize("name", ["fetch_job", "finish_job"])
async def test_the_limit_holds_for_jobs_that_are_fetched_or_ended_together(monkeypatch, name):
    async def still(_self, _query, **_arguments):
        await asyncio.Event().wait()

    monkeypatch.setattr(procrastinate.PsycopgConnector, "execute_query_all_async", still)
    connector = Connector(0.05)
    calls = {
        "fetch_job": lambda: connector.execute_query_one_async(queries[name], queues=[QUEUE], worker_id=1),
        "finish_job": lambda: connector.execute_query_async(queries[name], job_id=1, status="failed", delete_job=False),
    }
    async with asyncio.timeout(2):
        for each in await asyncio.gather(*(calls[name]() for _ in range(3)), return_exceptions=True):
            assert isinstance(each, ConnectorException)


async def test_a_heartbeat_that_fails_is_not_the_last_one(queue, monkeypatch, caplog):
    (worker,) = await register(queue, 1)

    async def broken(_self, _query, **_arguments):
        raise ConnectorException("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(procrastinate.PsycopgConnector, "execute_query_async", broken)
        await queue.job_manager.update_heartbeat(worker)
        with pytest.raises(ConnectorException):
            await queue.job_manager.unregister_worker(worker)
    assert "a heartbeat failed" in caplog.text


async def register(queue, count):
    return [await queue.job_manager.register_worker() for _ in range(count)]


async def add(queue, *locks):
    for number, lock in enumerate(locks):
        await queue.configure_task(TASK, queue=QUEUE, lock=lock).defer_async(number=number)


def counted(monkeypatch, queue):
    """The statements that go to the server."""
    sent = []
    plain = procrastinate.PsycopgConnector.execute_query_all_async

    async def counting(self, query, **arguments):
        sent.append(query)
        return await plain(self, query, **arguments)

    monkeypatch.setattr(procrastinate.PsycopgConnector, "execute_query_all_async", counting)
    return sent


async def test_what_loops_fetch_at_the_same_moment_is_one_statement_and_nothing_twice(queue, monkeypatch):
    workers = await register(queue, 5)
    await add(queue, "a", "b", "b", "c")
    sent = counted(monkeypatch, queue)
    found = await asyncio.gather(*(queue.job_manager.fetch_job([QUEUE], worker) for worker in workers))
    assert len(sent) == 1
    jobs = [job for job in found if job is not None]
    assert sorted(job.lock for job in jobs) == ["a", "b", "c"], "one job of a lock at a time"
    assert [job.worker_id for job in found if job] == [w for w, job in zip(workers, found, strict=True) if job]
    assert sorted(job.task_kwargs["number"] for job in jobs) == [0, 1, 3]


async def test_for_each_job_that_is_found_one_more_loop_is_woken_and_they_take_turns(queue):
    woken = []

    async def listens(name):
        async def woke(*, channel, notification):
            assert notification["type"] == "job_inserted"
            woken.append(name)

        await queue.job_manager.listen_for_jobs(on_notification=woke, queues=[QUEUE])

    listeners = [asyncio.create_task(listens(name)) for name in "abc"]
    workers = await register(queue, 2)
    await add(queue, "a", "b", "c")
    for _ in range(3):
        await asyncio.gather(*(queue.job_manager.fetch_job([QUEUE], worker) for worker in workers))
    assert woken == ["a", "b", "c"], "two were found, then one, then none"
    listeners[1].cancel()
    await asyncio.gather(listeners[1], return_exceptions=True)
    await queue.connector.wake(9)
    assert sorted(woken[3:]) == ["a", "c"]
    for listener in listeners:
        listener.cancel()


async def test_a_loop_that_others_took_for_lost_does_not_keep_the_other_loops_from_fetching(queue):
    workers = await register(queue, 3)
    await add(queue, "a", "b", "c")
    await queue.job_manager.unregister_worker(workers[1])
    fetches = (queue.job_manager.fetch_job([QUEUE], worker) for worker in workers)
    found = await asyncio.gather(*fetches, return_exceptions=True)
    assert isinstance(found[1], ConnectorException)
    assert sorted(found[n].lock for n in (0, 2)) == ["a", "b"]


async def test_what_ends_at_the_same_moment_is_one_statement(queue, monkeypatch):
    (worker,) = await register(queue, 1)
    await add(queue, "a", "b", "c", "d")
    jobs = [await queue.job_manager.fetch_job([QUEUE], worker) for _ in range(4)]
    sent = counted(monkeypatch, queue)
    ends = [(jobs[0], Status.SUCCEEDED, True), (jobs[1], Status.SUCCEEDED, True), (jobs[2], Status.FAILED, False)]
    await asyncio.gather(*(queue.job_manager.finish_job(*end) for end in ends))
    assert len(sent) == 1
    left = {job.id: job.status for job in await queue.job_manager.list_jobs_async()}
    assert left == {jobs[2].id: "failed", jobs[3].id: "doing"}


async def test_a_job_that_had_ended_does_not_keep_the_others_from_ending(queue):
    (worker,) = await register(queue, 1)
    await add(queue, "a", "b", "c", "d")
    jobs = [await queue.job_manager.fetch_job([QUEUE], worker) for _ in range(4)]
    await queue.job_manager.finish_job(jobs[2], Status.SUCCEEDED, delete_job=True)
    ends = (queue.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=True) for job in jobs)
    ended = await asyncio.gather(*ends, return_exceptions=True)
    assert [type(each) for each in ended] == [type(None), type(None), ConnectorException, type(None)]
    assert not await queue.job_manager.list_jobs_async()
