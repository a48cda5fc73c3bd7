"""The job queue: procrastinate on PostgreSQL, deferred in the transaction that accepts, polled by the workers."""

import asyncio
from typing import Any

import procrastinate
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


def create(connector: Any) -> Any:
    """The procrastinate application; tasks are added by the worker."""
    return procrastinate.App(connector=connector)


async def defer(app: Any, connection: Connection, tenant: str, accepted: Accepted) -> None:
    """Queue the pipeline's run for an accepted version, in the caller's transaction.

    The lock keeps the jobs of one document in their order and one at a time.
    """
    deferrer = app.configure_task(
        TASK, queue=QUEUE, lock=f"{tenant}\n{accepted.document_id}", connection=connection, allow_unknown=True
    )
    await deferrer.defer_async(tenant=tenant, document_id=accepted.document_id, version=accepted.version)
