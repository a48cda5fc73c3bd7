"""Pinned facts: short texts that are in every answer of a tenant, or of one of its conversations."""

from dataclasses import dataclass
from datetime import datetime

from devmentor.pbml.db import Connection
from devmentor.pbml.store import generations

OF_TENANT = ""
"""Where a conversation's name would be, for a pin of the whole tenant."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A pinned fact."""

    conversation_id: str
    name: str
    body: str
    updated_at: datetime


class TooManyPins(Exception):
    """The tenant or the conversation has as many as it may."""


async def put(c: Connection, tenant: str, conversation_id: str, name: str, body: str, most: int) -> bool:
    """Write a pin. True where it is new. Raises TooManyPins."""
    # Before the count: this row orders all writers of the same pins.
    await _changed(c, tenant, conversation_id)
    cursor = await c.execute(
        "UPDATE pins SET body = %s, updated_at = now() WHERE tenant = %s AND conversation_id = %s AND name = %s",
        (body, tenant, conversation_id, name),
    )
    if cursor.rowcount == 1:
        return False
    cursor = await c.execute(
        "SELECT count(*) AS pins FROM pins WHERE tenant = %s AND conversation_id = %s", (tenant, conversation_id)
    )
    row = await cursor.fetchone()
    if row is None or row["pins"] >= most:
        raise TooManyPins
    await c.execute(
        "INSERT INTO pins (tenant, conversation_id, name, body) VALUES (%s, %s, %s, %s)",
        (tenant, conversation_id, name, body),
    )
    return True


async def remove(c: Connection, tenant: str, conversation_id: str, name: str) -> bool:
    """False where there is none."""
    cursor = await c.execute(
        "DELETE FROM pins WHERE tenant = %s AND conversation_id = %s AND name = %s", (tenant, conversation_id, name)
    )
    if cursor.rowcount != 1:
        return False
    await _changed(c, tenant, conversation_id)
    return True


async def remove_conversation(c: Connection, tenant: str, conversation_id: str) -> None:
    """All pins of a conversation, with the conversation."""
    await c.execute("DELETE FROM pins WHERE tenant = %s AND conversation_id = %s", (tenant, conversation_id))


async def remove_all(c: Connection, tenant: str) -> None:
    """All pins of a tenant and of its conversations, with the tenant."""
    await c.execute("DELETE FROM pins WHERE tenant = %s", (tenant,))


async def listed(c: Connection, tenant: str, conversation_id: str | None, *, tenants_too: bool) -> list[Pin]:
    """The pins of a conversation by name, then those of the tenant."""
    wanted = [conversation_id or OF_TENANT, *([OF_TENANT] if tenants_too else [])]
    cursor = await c.execute(
        "SELECT conversation_id, name, body, updated_at FROM pins"
        " WHERE tenant = %s AND (conversation_id = %s OR conversation_id = %s)"
        " ORDER BY conversation_id DESC, name",
        (tenant, wanted[0], wanted[-1]),
    )
    return [Pin(**row) for row in await cursor.fetchall()]


async def one(c: Connection, tenant: str, conversation_id: str, name: str) -> Pin | None:
    """A pin by its name."""
    cursor = await c.execute(
        "SELECT conversation_id, name, body, updated_at FROM pins"
        " WHERE tenant = %s AND conversation_id = %s AND name = %s",
        (tenant, conversation_id, name),
    )
    row = await cursor.fetchone()
    return Pin(**row) if row else None


async def _changed(c: Connection, tenant: str, conversation_id: str) -> None:
    """A fetch finds something else from now on."""
    if conversation_id == OF_TENANT:
        # One row for all pins of the tenant, whatever their names.
        await generations.bump_generation(c, tenant, "~pins")
    else:
        await generations.bump_conversation(c, tenant, conversation_id)
