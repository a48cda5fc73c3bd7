"""The job queue: procrastinate on PostgreSQL, deferred in the transaction that accepts, polled by the workers."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision

from devmentor.pbml.db import Connection, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import EmbedderUnavailable
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.store.acceptance import Accepted

QUEUE = "pbml"
TASK = "pbml.process"

DEPENDENCY_AWAY = (DatabaseUnavailable, OutcomeUnknown, EmbedderUnavailable, IndexUnavailable)
"""Not the document's fault: tried again for as long as it takes."""

_LONGEST_WAIT_S = 30


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


class BoundedConnector(procrastinate.PsycopgConnector):  # type: ignore[misc] # untyped for mypy
    """procrastinate's connector with a limit on each statement; it has none, and a frozen pooler stopped its loop.

    Past the limit psycopg cancels the statement, waits up to 10 s more and closes the connection.
    """

    def __init__(self, limit_s: float) -> None:
        super().__init__()
        self._limit_s = limit_s

    async def execute_query_async(self, query: Any, **arguments: Any) -> None:
        """As procrastinate's. Raises ConnectorException past the limit."""
        await self._bounded(super().execute_query_async(query, **arguments))

    async def execute_query_one_async(self, query: Any, **arguments: Any) -> dict[str, Any]:
        """As procrastinate's. Raises ConnectorException past the limit."""
        return cast(dict[str, Any], await self._bounded(super().execute_query_one_async(query, **arguments)))

    async def execute_query_all_async(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:
        """As procrastinate's. Raises ConnectorException past the limit."""
        return cast(list[dict[str, Any]], await self._bounded(super().execute_query_all_async(query, **arguments)))

    async def _bounded(self, call: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._limit_s):
                return await call
        except TimeoutError as error:
            raise ConnectorException(f"no answer within {self._limit_s:g} s") from error


def create(connector: Any) -> Any:
    """The procrastinate application; tasks are added by the worker."""
    return procrastinate.App(connector=connector)


async def defer(app: Any, connection: Connection, tenant: str, accepted: Accepted) -> None:
    """Queue the pipeline's run for an accepted version, in the caller's transaction.

    The lock keeps the jobs of one document in their order and one at a time. Raises what PostgreSQL said: procrastinate
    hides it in an error of its own, which nobody around a transaction knows to be a server that went away.
    """
    deferrer = app.configure_task(
        TASK, queue=QUEUE, lock=f"{tenant}\n{accepted.document_id}", connection=connection, allow_unknown=True
    )
    try:
        await deferrer.defer_async(tenant=tenant, document_id=accepted.document_id, version=accepted.version)
    except ConnectorException as error:
        if isinstance(error.__cause__, psycopg.Error):
            raise error.__cause__ from error
        raise
