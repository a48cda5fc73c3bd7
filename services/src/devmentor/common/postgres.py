"""How the services open PostgreSQL's connections: a peer that is gone is noticed within seconds."""

import select
from typing import Any

from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

# While something that was sent is not acknowledged, the kernel sends no keepalives; without `tcp_user_timeout` (ms) a
# statement that was on its way to a host that lost its power waits for a quarter of an hour (net.ipv4.tcp_retries2).
_NOTICED = make_conninfo(
    "",
    connect_timeout="3",
    keepalives_idle="10",
    keepalives_interval="3",
    keepalives_count="3",
    tcp_user_timeout="3000",
)


def conninfo(base: str, **extra: str) -> str:
    """libpq connection string: `base`, which overrides the limits, and `extra`, which overrides `base`."""
    return make_conninfo(f"{_NOTICED} {base}", **extra)


async def check(connection: AsyncConnection[Any]) -> None:
    """A pool's `check`: a pooler that restarts closes its idle connections, and none of these is lent.

    A system call where nothing has come from the server, which is nearly always; else a round trip as
    AsyncConnectionPool.check_connection makes each time. Raises psycopg.OperationalError.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(connection)
