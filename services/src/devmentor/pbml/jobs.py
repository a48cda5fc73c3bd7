"""The job queue: procrastinate on PostgreSQL, deferred in the transaction that accepts, polled by the workers."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, cast

import procrastinate
import psycopg
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException, UniqueViolation
from procrastinate.jobs import Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.sql import queries

from devmentor.pbml.batch import BatchManager
from devmentor.pbml.db import Connection, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import EmbedderUnavailable
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.store.acceptance import Accepted

log = logging.getLogger(__name__)

QUEUE = "pbml"
TASK = "pbml.process"
IMPORT_PRIORITY = -1

DEPENDENCY_AWAY = (DatabaseUnavailable, OutcomeUnknown, EmbedderUnavailable, IndexUnavailable)
"""Not the document's fault: tried again for as long as it takes."""

_LONGEST_WAIT_S = 30
_TOGETHER = 32
_WAKES = json.dumps({"type": "job_inserted", "job_id": 0})

# procrastinate's own functions, one call a row: each sees what those before it have changed.
_FETCH = """
SELECT job.id, status, task_name, priority, lock, queueing_lock, args, scheduled_at, queue_name, attempts, worker_id
FROM unnest(%(workers)s::bigint[]) WITH ORDINALITY AS asking (id, turn),
     procrastinate_fetch_job_v2(%(queues)s::varchar[], asking.id) AS job
ORDER BY turn
"""
_FINISH = """
SELECT procrastinate_finish_job_v1(id, status::procrastinate_job_status, deleted)
FROM unnest(%(jobs)s::bigint[], %(statuses)s::text[], %(deleted)s::boolean[]) AS ended (id, status, deleted)
"""


class GivenUp(Exception):
    """The version failed by its own fault as often as it may."""


class Retry(BaseRetryStrategy):  # type: ignore[misc] # untyped for mypy: follow_imports = skip
    """Forever, until the version is given up. The job's attempts tell nothing of that: most may have been waits."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """Exponential, 1 s to 30 s; at once where the worker stops."""
        if isinstance(exception, GivenUp):
            return None
        if isinstance(exception, asyncio.CancelledError):
            return RetryDecision(retry_in={"seconds": 0})
        return RetryDecision(retry_in={"seconds": min(2 ** min(job.attempts, 10), _LONGEST_WAIT_S)})


class Wakes:
    """For PostgreSQL's notifications, which PgBouncer in transaction mode has not: a process wakes its own loops."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: deque[Notify] = deque()

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """As procrastinate's: does not return."""
        self._sleepers.append(on_notification)
        try:
            await asyncio.Event().wait()
        finally:
            self._sleepers.remove(on_notification)

    async def wake(self, count: int = 1) -> None:
        """The next `count` loops look at the queue, if they sleep; they take turns."""
        for _ in range(min(count, len(self._sleepers))):
            self._sleepers.rotate(-1)
            await self._sleepers[-1](channel=QUEUE, payload=_WAKES)


class Connector(Wakes, procrastinate.PsycopgConnector):  # type: ignore[misc] # untyped for mypy
    """procrastinate's connector with a limit on each statement; it has none, and a frozen pooler stopped its loop.

    Past the limit psycopg cancels the statement, waits up to 10 s more and closes the connection.

    Jobs that several loops fetch, or end, at the same moment are fetched, or ended, in one statement: each is a commit
    that waits for the replicas. For each job that is found one more loop is woken, and no loop but these asks often:
    few of them look at an empty queue, all of them soon at a full one.
    """

    def __init__(self, limit_s: float) -> None:
        super().__init__()
        self._limit_s = limit_s
        self._fetches = BatchManager("fetch", self._fetch, own_fault=_refused, max_size=_TOGETHER)
        self._ends = BatchManager("finish", self._finish, own_fault=_refused, max_size=_TOGETHER, in_flight=2)

    async def close_async(self) -> None:
        """As procrastinate's."""
        await self._fetches.close()
        await self._ends.close()
        await super().close_async()

    async def execute_query_async(self, query: Any, **arguments: Any) -> None:
        """As procrastinate's. Raises ConnectorException past the limit."""
        if query == queries["finish_job"]:
            await self._ends.submit([(arguments["job_id"], arguments["status"], arguments["delete_job"])])
            return
        try:
            await self._bounded(super().execute_query_async(query, **arguments))
        except ConnectorException as error:
            # procrastinate sends none after one that failed, and without them others take the loop's jobs over.
            if query != queries["update_heartbeat"]:
                raise
            log.warning("a heartbeat failed, the next one follows", extra={"reason": str(error)})

    async def execute_query_one_async(self, query: Any, **arguments: Any) -> dict[str, Any]:
        """As procrastinate's. Raises ConnectorException past the limit."""
        if query == queries["fetch_job"]:
            return (await self._fetches.submit([(tuple(arguments["queues"]), arguments["worker_id"])]))[0]
        return cast(dict[str, Any], await self._bounded(super().execute_query_one_async(query, **arguments)))

    async def execute_query_all_async(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:
        """As procrastinate's. Raises ConnectorException past the limit."""
        return cast(list[dict[str, Any]], await self._bounded(super().execute_query_all_async(query, **arguments)))

    async def _fetch(self, asking: Sequence[tuple[tuple[str, ...], int]]) -> list[dict[str, Any]]:
        names = sorted({name for asked, _ in asking for name in asked})  # all loops ask for the same ones
        rows = await self.execute_query_all_async(_FETCH, queues=names, workers=[worker for _, worker in asking])
        await self.wake(sum(row["id"] is not None for row in rows))
        return rows

    async def _finish(self, ended: Sequence[tuple[int, str, bool]]) -> list[None]:
        # In one order: two workers that end the same jobs (one of them lost them meanwhile) do not wait for each other.
        jobs, statuses, deleted = ([each[part] for each in sorted(ended)] for part in range(3))
        await self.execute_query_all_async(_FINISH, jobs=jobs, statuses=statuses, deleted=deleted)
        return [None] * len(ended)

    async def _bounded(self, call: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._limit_s):
                return await call
        except TimeoutError as error:
            raise ConnectorException(f"no answer within {self._limit_s:g} s") from error


_REFUSALS = (
    psycopg.errors.RaiseException,  # a job that is not found, or ended already
    psycopg.errors.ForeignKeyViolation,  # a loop that others took for lost: its worker's row is gone
    psycopg.errors.DeadlockDetected,
)


def _refused(error: Exception) -> bool:
    """Whether the statement was refused for one of its rows, perhaps, and nothing of it was done."""
    return isinstance(error, UniqueViolation) or isinstance(error.__cause__, _REFUSALS)


def create(connector: Any) -> Any:
    """The procrastinate application; tasks are added by the worker."""
    return procrastinate.App(connector=connector)


async def defer(app: Any, connection: Connection, tenant: str, accepted: Sequence[Accepted]) -> None:
    """Queue the pipeline's runs for accepted versions, in the caller's transaction and their order.

    Several at once are an import: what comes one by one goes before them. A job's lock keeps those of one document one
    at a time and, where they have one priority, in their order; a version whose turn comes after a newer one's is
    retired (`Pipeline`). Raises what PostgreSQL said:
    procrastinate hides it in an error of its own, which nobody around a transaction knows to be a server that went
    away.
    """
    priority = IMPORT_PRIORITY if len(accepted) > 1 else 0
    new = app.configure_task(TASK, queue=QUEUE, priority=priority, allow_unknown=True).make_new_job
    queued = [
        new(tenant=tenant, document_id=each.document_id, version=each.version).evolve(
            lock=f"{tenant}\n{each.document_id}"
        )
        for each in accepted
    ]
    try:
        await app.job_manager.batch_defer_jobs_async(queued, connection=connection)
    except ConnectorException as error:
        if isinstance(error.__cause__, psycopg.Error):
            raise error.__cause__ from error
        raise
