"""A private PostgreSQL with PBML's schema: for what only the real one can show."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from private_postgres import Postgres

from devmentor.pbml import counting, indexes, schema


@contextmanager
def server() -> Iterator[str]:
    """The conninfo of a server that forgets everything at the end; the test fails where none is installed."""
    with Postgres(locale=None) as made:
        yield made.conninfo()


@contextmanager
def database(conninfo: str, name: str, template: str = "template0") -> Iterator[str]:
    """The conninfo of a database, empty or as the template is."""
    with psycopg.connect(f"{conninfo} dbname=postgres", autocommit=True) as c:
        c.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield f"{conninfo} dbname={name}"
    finally:
        with psycopg.connect(f"{conninfo} dbname=postgres", autocommit=True) as c:
            c.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def prepared() -> Iterator[str]:
    """A server whose database `prepared` is as `devmentor-pbml prepare` leaves it: a template for `database`."""
    with server() as conninfo, database(conninfo, "prepared") as whole:
        schema.migrate(whole)
        indexes.ensure(whole)
        counting.count_usage(whole)
        yield conninfo
