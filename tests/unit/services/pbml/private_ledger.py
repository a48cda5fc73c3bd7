"""A private PostgreSQL with PBML's schema: for what only the real one can show."""

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import psycopg
from private_postgres import Postgres

from devmentor.pbml import counting, indexes, schema
from devmentor.pbml.api import application
from devmentor.pbml.settings import Settings


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


@asynccontextmanager
async def api(
    conninfo: str, tenants: Path, keys: Mapping[str, str], tenant: str = "t", **settings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client, as `tenant`, of the API in this process. `tenants`: the file that is written for the `keys`."""
    _write_tenants(tenants, keys)
    app = application(Settings(database=conninfo, tenants_file=tenants, **settings))
    headers = {"Authorization": f"Bearer {keys[tenant]}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pbml", headers=headers) as client,
    ):
        yield client


def _write_tenants(path: Path, keys: Mapping[str, str]) -> None:
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in keys.items()}
    path.write_text(json.dumps([{"tenant": name, "key_sha256": digest} for name, digest in digests.items()]))
