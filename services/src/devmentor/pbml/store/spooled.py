"""Writes of replicas' spools in the ledger: done once, and in the order of their acknowledgement."""

from datetime import datetime
from typing import Any

from devmentor.pbml.db import Connection
from devmentor.pbml.store import generations
from devmentor.pbml.store.acceptance import Accepted


async def claim(c: Connection, tenant: str, entry_id: str) -> int | None:
    """None where the entry is new (and now ours), else the seq that it has.

    Waits for a transaction under way with the same id: a commit whose outcome was not known. That it is done already is
    written too, so that the caller's commit, once confirmed, says that the first one is on the quorum.
    """
    cursor = await c.execute(
        "INSERT INTO spool_entries (entry_id, tenant) VALUES (%s, %s)"
        " ON CONFLICT (entry_id) DO UPDATE SET replays = spool_entries.replays + 1 RETURNING seq",
        (entry_id, tenant),
    )
    row = await cursor.fetchone()
    assert row is not None
    seq: int | None = row["seq"]
    return seq


async def settle(c: Connection, entry_id: str, seq: int) -> None:
    """Where the entry is in the ledger."""
    await c.execute("UPDATE spool_entries SET seq = %s WHERE entry_id = %s", (seq, entry_id))


async def record(c: Connection, tenant: str, entry_id: str, seq: int) -> None:
    """The same for a write that comes first: should its commit's outcome not be known, it may be spooled by this id."""
    await c.execute("INSERT INTO spool_entries (entry_id, tenant, seq) VALUES (%s, %s, %s)", (entry_id, tenant, seq))


async def seq_of(c: Connection, tenant: str, entry_id: str) -> int | None:
    """Where an entry is in the ledger; None where it is not there (yet), or another tenant's."""
    cursor = await c.execute("SELECT seq FROM spool_entries WHERE entry_id = %s AND tenant = %s", (entry_id, tenant))
    row = await cursor.fetchone()
    return row["seq"] if row is not None else None


async def document_is_late(c: Connection, tenant: str, document_id: str, accepted_at: datetime) -> bool:
    """Whether the ledger has a version or a deletion of later acceptance. The document is locked from here on."""
    await c.execute(
        "INSERT INTO documents (tenant, document_id, latest_version) VALUES (%s, %s, 0)"
        " ON CONFLICT (tenant, document_id) DO UPDATE SET latest_version = documents.latest_version",
        (tenant, document_id),
    )
    cursor = await c.execute(
        "SELECT coalesce(max(received_at) > %s, false) AS late FROM versions WHERE tenant = %s AND document_id = %s",
        (accepted_at, tenant, document_id),
    )
    row = await cursor.fetchone()
    return row is not None and bool(row["late"])


async def turn_is_late(c: Connection, tenant: str, conversation_id: str, accepted_at: datetime) -> bool:
    """Whether the conversation was deleted after the turn was said. The conversation is locked from here on."""
    await generations.bump_conversation(c, tenant, conversation_id)
    cursor = await c.execute(
        "SELECT coalesce(deleted_at > %s, false) AS late FROM conversations WHERE tenant = %s AND conversation_id = %s",
        (accepted_at, tenant, conversation_id),
    )
    row = await cursor.fetchone()
    return row is not None and bool(row["late"])


async def accept_late_document(c: Connection, tenant: str, document_id: str, size: int, at: datetime) -> Accepted:
    """A version that something newer had replaced before it arrived: a row without a text, never live.

    Its number is below all others (0, -1, ...): numbers above the newest would hide that one from readers, and none is
    free between.
    """
    cursor = await c.execute(
        "INSERT INTO versions (tenant, document_id, version, kind, content_bytes, status, received_at)"
        " SELECT %(tenant)s, %(document)s, least(min(version), 1) - 1, 'document', %(size)s, 'superseded', %(at)s"
        " FROM versions WHERE tenant = %(tenant)s AND document_id = %(document)s RETURNING version, seq",
        {"tenant": tenant, "document": document_id, "size": size, "at": at},
    )
    return Accepted(document_id, **_row(await cursor.fetchone()))


async def accept_late_turn(
    c: Connection, tenant: str, conversation_id: str, document_id: str, role: str, size: int, at: datetime
) -> Accepted:
    """A turn of a conversation that was deleted after it: deleted as the others are."""
    await c.execute(
        "INSERT INTO documents (tenant, document_id, latest_version, deleted_version) VALUES (%s, %s, 1, 1)",
        (tenant, document_id),
    )
    cursor = await c.execute(
        "INSERT INTO versions (tenant, document_id, version, kind, conversation_id, role, content_bytes, status,"
        " received_at) VALUES (%s, %s, 1, 'turn', %s, %s, %s, 'superseded', %s) RETURNING version, seq",
        (tenant, document_id, conversation_id, role, size, at),
    )
    return Accepted(document_id, **_row(await cursor.fetchone()))


async def date_back(c: Connection, seq: int, at: datetime) -> None:
    """A version was acknowledged when its entry was, which is earlier than its row; never later."""
    await c.execute("UPDATE versions SET received_at = %s WHERE seq = %s AND received_at > %s", (at, seq, at))


def _row(row: dict[str, Any] | None) -> dict[str, int]:
    assert row is not None
    return row
