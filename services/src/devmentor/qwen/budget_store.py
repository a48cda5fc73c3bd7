"""The rows of the token budgets in PostgreSQL, through PgBouncer: one short transaction for the leases of many."""

import asyncio
import logging
from typing import Protocol

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from devmentor.common import postgres
from devmentor.qwen.budget import Ask, Grant, Row, decide
from devmentor.qwen.settings import QwenSettings

log = logging.getLogger(__name__)


class BudgetUnavailableError(Exception):
    """The row gave no answer in time. Whether it was changed is not known."""


class Store(Protocol):
    """Where limits are kept."""

    async def lease(self, key: bytes, period_s: int, ask: Ask) -> Grant:
        """The row's answer, committed. Raises BudgetUnavailableError."""
        ...


# A conflict locks the row until the commit and returns it as it is now.
_LOCK = """
    INSERT INTO qwen.token_budgets AS b (key_sha256, period_s, budget_window, taken) VALUES (%s, %s, -1, 0)
    ON CONFLICT (key_sha256, period_s) DO UPDATE SET taken = b.taken
    RETURNING b.budget_window, b.taken, b.window_limit
"""
_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
_WRITE = """
    UPDATE qwen.token_budgets SET budget_window = %s, taken = %s, window_limit = %s
    WHERE key_sha256 = %s AND period_s = %s
"""


def conninfo(settings: QwenSettings, *, session: bool = False) -> str:
    """libpq connection string, for the session-pooled entry where asked. Raises ValueError where none is configured."""
    if settings.database is None:
        raise ValueError("QWEN_DATABASE is not set: token budgets are counted in PostgreSQL")
    extra: dict[str, str] = {"application_name": f"qwen@{settings.instance}"}
    if settings.database_password is not None:
        extra["password"] = settings.database_password.get_secret_value()
    if session:
        extra["dbname"] = settings.database_session_name
    return postgres.conninfo(settings.database, **extra)


_LEASE_S = 10.0  # psycopg may take as long again to be rid of a connection that does not answer


class PostgresStore:
    """A small pool of connections."""

    def __init__(self, settings: QwenSettings) -> None:
        self._pool = AsyncConnectionPool(
            conninfo(settings),
            # No server-side prepared statements: a pooled server connection may not know them.
            kwargs={"prepare_threshold": None},
            check=postgres.check,
            min_size=1,
            max_size=settings.database_pool_size,
            timeout=settings.budget_timeout_s,
            max_idle=120,
            max_lifetime=1800,
            reconnect_timeout=30,
            open=False,
        )

    async def open(self) -> None:
        """Start the pool; a database that is away now is not an error yet."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close()

    async def lease(self, key: bytes, period_s: int, ask: Ask) -> Grant:
        try:
            async with asyncio.timeout(_LEASE_S), self._pool.connection() as connection:
                found = await (await connection.execute(_LOCK, (key, period_s))).fetchone()
                # Read under the lock: the time of the transaction's start may be that of the window before.
                clock = await (await connection.execute(_CLOCK)).fetchone()
                assert found is not None
                assert clock is not None
                row, grant = decide(Row(*found), clock[0], period_s, ask)
                await connection.execute(_WRITE, (row.window, row.taken, row.limit, key, period_s))
            return grant
        except (psycopg.Error, PoolTimeout, TooManyRequests, OSError, TimeoutError) as error:
            raise BudgetUnavailableError(f"{type(error).__name__}: {error}") from error

    async def probe(self) -> str:
        """For readiness: the table can be read."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute("SELECT count(*) FROM qwen.token_budgets")).fetchone()
        assert row is not None
        return f"{row[0]} limits counted"
