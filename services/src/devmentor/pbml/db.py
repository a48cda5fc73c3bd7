"""Transactions on PostgreSQL through PgBouncer: bounded, retried where that is safe, and honest about durability."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import psycopg
from prometheus_client import Counter, Histogram
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from devmentor.common import postgres
from devmentor.pbml.settings import Settings

log = logging.getLogger(__name__)

WRITES = Counter("pbml_database_writes", "Write transactions", ["result"])
WRITE_SECONDS = Histogram(
    "pbml_database_write_seconds",
    "Write transactions, from the wait for a connection to the commit on the quorum",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

T = TypeVar("T")
Connection = psycopg.AsyncConnection[DictRow]


class DatabaseUnavailable(Exception):
    """Nothing was committed; the work may be sent again."""


class OutcomeUnknown(Exception):
    """The commit was sent and its outcome is not known, or it is not on the quorum: not acknowledged."""


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """A committed transaction's result. `durability` is quorum where synchronous standbys confirmed it; `at` is when it
    began, by PostgreSQL's clock: what its rows have from now()."""

    value: T
    durability: str
    at: datetime


# Errors of a server that is going down, coming up or has become a standby.
_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
    TooManyRequests,
)


def _is_away(error: BaseException) -> bool:
    """psycopg's own InternalError is of a server that goes while it answers: two results of one COMMIT, say."""
    return not isinstance(error, psycopg.InternalError) or error.sqlstate is None


class Database:
    """A pool of connections and the two ways to use one."""

    def __init__(self, settings: Settings, application: str) -> None:
        self._timeout_s = settings.database_timeout_s
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            settings.conninfo(application=application),
            # No server-side prepared statements: a pooled server connection may not know them. Transactions are begun
            # where there is one: the queue's single statements, most of all there are, need none.
            kwargs={"prepare_threshold": None, "row_factory": dict_row, "autocommit": True},
            connection_class=psycopg.AsyncConnection[DictRow],
            check=postgres.check,
            min_size=1,
            max_size=settings.database_pool_size,
            max_waiting=settings.database_max_waiting,
            timeout=settings.database_timeout_s,
            max_idle=120,
            max_lifetime=1800,
            reconnect_timeout=30,
            open=False,
        )

    async def open(self) -> None:
        """Start the pool; a database that is away now is not an error yet."""
        await self.pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections."""
        await self.pool.close()

    @asynccontextmanager
    async def read(self, timeout_s: float | None = None) -> AsyncIterator[Connection]:
        """A transaction that is not retried. Errors of the server become DatabaseUnavailable."""
        try:
            async with (
                asyncio.timeout(timeout_s or self._timeout_s),
                self.pool.connection() as connection,
                connection.transaction(),
            ):
                yield connection
        except (*_AWAY, psycopg.InternalError, TimeoutError) as error:
            if not _is_away(error):
                raise
            raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error

    async def write(self, work: Callable[[Connection], Awaitable[T]], timeout_s: float | None = None) -> Committed[T]:
        """Run `work` and commit. Tried again while nothing was committed and time is left."""
        deadline = asyncio.get_running_loop().time() + (timeout_s or self._timeout_s)
        start, pause = time.monotonic(), 0.05
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    committed = await self._attempt(work)
                WRITES.labels("ok").inc()
                WRITE_SECONDS.observe(time.monotonic() - start)
                return committed
            except OutcomeUnknown as error:
                WRITES.labels("unknown").inc()
                if task.cancelling() > cancelling:
                    raise asyncio.CancelledError from error  # by somebody who waits for the end, not by the deadline
                raise
            except (*_AWAY, psycopg.InternalError, TimeoutError) as error:
                if not _is_away(error):
                    raise
                if asyncio.get_running_loop().time() + pause >= deadline:
                    WRITES.labels("unavailable").inc()
                    raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error
                log.info("write is tried again", extra={"reason": f"{type(error).__name__}: {error}"[:200]})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)

    async def _attempt(self, work: Callable[[Connection], Awaitable[T]]) -> Committed[T]:
        warnings: list[str] = []

        def note(diagnostic: psycopg.errors.Diagnostic) -> None:
            if diagnostic.severity_nonlocalized == "WARNING":
                warnings.append(diagnostic.message_primary or "")

        committing = False
        try:
            async with self.pool.connection() as connection:
                # A setting of the role or the database must not be able to lower what "acknowledged" means.
                cursor = await connection.execute(
                    "BEGIN; SELECT set_config('synchronous_commit', 'on', true),"
                    " current_setting('synchronous_standby_names') <> '' AS quorum, now() AS at"
                )
                cursor.nextset()
                row = await cursor.fetchone()
                value = await work(connection)
                if connection.info.transaction_status is not TransactionStatus.INTRANS:
                    raise RuntimeError("not in a transaction: every statement has committed for itself")
                connection.add_notice_handler(note)
                committing = True
                try:
                    await connection.commit()
                finally:
                    connection.remove_notice_handler(note)
        except (*_AWAY, psycopg.InternalError, TimeoutError, asyncio.CancelledError) as error:
            # Also where the commit is done and the deadline ends the connection's way back to the pool.
            if committing:
                raise OutcomeUnknown(f"commit: {type(error).__name__}: {error}") from error
            raise
        if warnings:
            # "canceling wait for synchronous replication": committed on the primary alone, which may be
            # the side that a failover throws away.
            raise OutcomeUnknown(f"committed with a warning: {warnings[0]}")
        assert row is not None
        return Committed(value, "quorum" if row["quorum"] else "primary", row["at"])
