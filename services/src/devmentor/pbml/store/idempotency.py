"""Idempotency keys: a request that comes again gets the answer that it got before."""

import hashlib
import json
from typing import Any

from psycopg.types.json import Jsonb

from devmentor.pbml.db import Connection


class KeyReused(Exception):
    """An Idempotency-Key came back with another request."""


def request_bytes(route: str, body: dict[str, Any]) -> bytes:
    """What makes two requests the same."""
    return f"{route}\n{json.dumps(body, sort_keys=True, separators=(',', ':'))}".encode()


async def claim_key(c: Connection, tenant: str, key: str, request: bytes) -> dict[str, Any] | None:
    """None where the key is new (and now ours), else the response that was given before.

    A concurrent request with the same key waits here for the other's commit. A replay writes too: its
    commit can only be acknowledged after the first one's, which the first client may never have seen.
    """
    return await claim_digest(c, tenant, key, hashlib.sha256(request).digest())


async def claim_digest(c: Connection, tenant: str, key: str, digest: bytes) -> dict[str, Any] | None:
    """The same, for a request of which only the SHA-256 is known."""
    cursor = await c.execute(
        "INSERT INTO idempotency (tenant, key, request_sha256) VALUES (%s, %s, %s)"
        " ON CONFLICT (tenant, key) DO UPDATE SET replays = idempotency.replays + 1"
        " RETURNING request_sha256, response",
        (tenant, key, digest),
    )
    row = await cursor.fetchone()
    assert row is not None
    if bytes(row["request_sha256"]) != digest:
        raise KeyReused(key)
    response: dict[str, Any] | None = row["response"]
    return response


async def answer_key(c: Connection, tenant: str, key: str, response: dict[str, Any]) -> None:
    """Keep the response for replays."""
    await c.execute(
        "UPDATE idempotency SET response = %s WHERE tenant = %s AND key = %s", (Jsonb(response), tenant, key)
    )


async def forget_keys(c: Connection, hours: int) -> int:
    """Idempotency keys older than `hours`."""
    cursor = await c.execute("DELETE FROM idempotency WHERE created_at < now() - make_interval(hours => %s)", (hours,))
    return cursor.rowcount
