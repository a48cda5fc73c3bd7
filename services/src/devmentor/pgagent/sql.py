"""Connections with hard limits: a server whose processes stand still must not hold the agent."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg import sql

T = TypeVar("T")


class Silent(Exception):
    """The server did not answer in time, or not at all; the message says to what."""

    @property
    def timed_out(self) -> bool:
        """Whether nothing was heard at all. Else there was an answer: refused, shutting down, the connection reset."""
        return isinstance(self.__cause__, TimeoutError | psycopg.errors.ConnectionTimeout)


class Database:
    """One standing connection, opened when it is needed and thrown away after any trouble."""

    def __init__(self, conninfo: str, what: str) -> None:
        self._conninfo = conninfo
        self._what = what
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()

    async def rows(self, statement: str, values: tuple[Any, ...] = (), limit_s: float = 2.0) -> list[Any]:
        """All rows. Raises Silent, also where the limit ran out while another statement had the connection."""

        async def run() -> list[Any]:
            async with self._lock:
                connection = self._connection
                if connection is None or connection.closed:
                    connection = self._connection = await connect(self._conninfo, limit_s)
                try:
                    return await bounded(connection, _rows(connection, statement, values), limit_s)
                except BaseException:
                    if self._connection is connection:
                        self._connection = None
                    sever(connection)
                    raise

        try:
            async with asyncio.timeout(limit_s + 1):
                return await run()
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise Silent(f"{self._what}: {_said(error)}") from error

    def drop(self) -> None:
        """Throw the connection away; the next statement opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._lock.locked():
                _shut(connection)  # the statement under way fails, and closes it
            else:
                sever(connection)


async def connect(conninfo: str, limit_s: float) -> psycopg.AsyncConnection[Any]:
    """A new connection in autocommit mode. Raises psycopg.Error, OSError or TimeoutError."""
    async with asyncio.timeout(limit_s):
        return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)


async def fresh_rows(conninfo: str, statement: str, limit_s: float, what: str) -> list[Any]:
    """All rows over a connection of its own: it was forked after everything that the postmaster did before."""
    try:
        connection = await connect(conninfo, limit_s)
        try:
            return await bounded(connection, _rows(connection, statement, ()), limit_s)
        finally:
            sever(connection)
    except (psycopg.Error, OSError, TimeoutError) as error:
        raise Silent(f"{what}: {_said(error)}") from error


async def bounded(connection: psycopg.AsyncConnection[Any], work: Coroutine[Any, Any, T], limit_s: float) -> T:
    """Cancelled, psycopg would wait for the server; here the socket is shut instead. Raises TimeoutError."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=limit_s)
    except asyncio.CancelledError:
        _abandon(connection, task)
        raise
    if done:
        return task.result()
    _abandon(connection, task)
    raise TimeoutError(f"no answer in {limit_s:g} s")


# Connections whose statement has not noticed yet that its socket is shut: libpq's memory must not be freed under it.
_abandoned: "WeakSet[psycopg.AsyncConnection[Any]]" = WeakSet()


def _abandon(connection: psycopg.AsyncConnection[Any], task: "asyncio.Future[Any]") -> None:
    _abandoned.add(connection)
    _shut(connection)

    def ended(task: "asyncio.Future[Any]") -> None:
        if not task.cancelled():
            task.exception()
        _abandoned.discard(connection)
        sever(connection)

    task.add_done_callback(ended)


def sever(connection: psycopg.AsyncConnection[Any]) -> None:
    """Close without a word to the server, at once or as soon as the statement under way has ended."""
    if connection not in _abandoned:
        with contextlib.suppress(psycopg.Error, OSError):
            connection.pgconn.finish()


def _shut(connection: psycopg.AsyncConnection[Any]) -> None:
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as handle:
        handle.shutdown(socket.SHUT_RDWR)


async def _rows(connection: psycopg.AsyncConnection[Any], statement: str, values: tuple[Any, ...]) -> list[Any]:
    cursor = await connection.execute(statement, values or None)
    return await cursor.fetchall() if cursor.description else []


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def literal(value: str) -> str:
    """For statements that take no parameters (ALTER SYSTEM)."""
    return sql.Literal(value).as_string(None)
