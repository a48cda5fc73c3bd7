"""How the services open PostgreSQL's connections: a peer that is gone is noticed within seconds."""

from psycopg.conninfo import make_conninfo

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
