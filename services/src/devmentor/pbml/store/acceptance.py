"""What is acknowledged: documents, turns and deletions become versions of the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from devmentor.pbml.db import Connection
from devmentor.pbml.store import generations, summaries


@dataclass(frozen=True, slots=True)
class Accepted:
    """A version that was given at acceptance."""

    document_id: str
    version: int
    seq: int


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What a client gives for a document's next version."""

    document_id: str
    title: str | None
    metadata: dict[str, Any]
    text: str


async def accept_document(
    c: Connection, tenant: str, document_id: str, title: str | None, metadata: dict[str, Any], text: str
) -> Accepted:
    """The next version of a document. Its row is locked until the commit: versions are given in commit order."""
    cursor = await c.execute(
        f"{_WITH_NEXT_VERSION} INSERT INTO versions"  # noqa: S608 - a constant
        " (tenant, document_id, version, kind, title, metadata, content, content_bytes)"
        " SELECT %s, %s, d.latest_version, 'document', %s, %s::jsonb, %s, octet_length(%s) FROM d"
        " RETURNING version, seq",
        (tenant, document_id, tenant, document_id, title, Jsonb(metadata), text, text),
    )
    return _accepted(document_id, await cursor.fetchone())


async def accept_documents(c: Connection, tenant: str, documents: Sequence[NewDocument]) -> list[Accepted]:
    """The next versions of documents that are all different, in the order of their ids.

    In that order their rows are locked, too: two such transactions do not wait for each other. A spool's replay locks
    in another order; where the two meet PostgreSQL ends one after a second, which is tried again. For one document the
    statement above costs two thirds of this one.
    """
    cursor = await c.execute(
        "WITH given AS (SELECT * FROM unnest(%(ids)s::text[], %(titles)s::text[], %(metadata)s::jsonb[],"
        " %(texts)b::text[]) AS g (document_id, title, metadata, content)),"
        " d AS (INSERT INTO documents (tenant, document_id, latest_version)"
        " SELECT %(tenant)s, document_id, 1 FROM given ORDER BY document_id"
        " ON CONFLICT (tenant, document_id) DO UPDATE SET latest_version = documents.latest_version + 1"
        " RETURNING document_id, latest_version)"
        " INSERT INTO versions (tenant, document_id, version, kind, title, metadata, content, content_bytes)"
        " SELECT %(tenant)s, document_id, latest_version, 'document', title, metadata, content, octet_length(content)"
        " FROM d JOIN given USING (document_id) ORDER BY document_id RETURNING document_id, version, seq",
        {
            "tenant": tenant,
            "ids": [document.document_id for document in documents],
            "titles": [document.title for document in documents],
            "metadata": [Jsonb(document.metadata) for document in documents],
            "texts": [document.text for document in documents],
        },
    )
    return [Accepted(**row) for row in await cursor.fetchall()]


async def accept_turn(
    c: Connection, tenant: str, conversation_id: str, document_id: str, role: str, content: str
) -> Accepted:
    """A turn is a document of its own that belongs to a conversation."""
    # The conversation's row before the ledger's: turns get their seq in the order of their commits.
    await generations.bump_conversation(c, tenant, conversation_id)
    cursor = await c.execute(
        f"{_WITH_NEXT_VERSION} INSERT INTO versions"  # noqa: S608 - a constant
        " (tenant, document_id, version, kind, conversation_id, role, content, content_bytes)"
        " SELECT %s, %s, d.latest_version, 'turn', %s, %s, %s, octet_length(%s) FROM d RETURNING version, seq",
        (tenant, document_id, tenant, document_id, conversation_id, role, content, content),
    )
    return _accepted(document_id, await cursor.fetchone())


async def accept_deletion(c: Connection, tenant: str, document_id: str) -> Accepted | None:
    """A version that says "gone"; in force from the commit on. None where there is nothing to delete."""
    cursor = await c.execute(
        "UPDATE documents SET latest_version = latest_version + 1, deleted_version = latest_version + 1"
        " WHERE tenant = %s AND document_id = %s AND deleted_version < latest_version RETURNING latest_version",
        (tenant, document_id),
    )
    document = await cursor.fetchone()
    if document is None:
        return None
    version = document["latest_version"]
    cursor = await c.execute(
        "INSERT INTO versions (tenant, document_id, version, kind) VALUES (%s, %s, %s, 'deletion') RETURNING seq",
        (tenant, document_id, version),
    )
    row = await cursor.fetchone()
    assert row is not None
    await generations.bump_generation(c, tenant, document_id)
    if document_id.startswith("~"):
        await _take_from_summaries(c, tenant, document_id)
    return Accepted(document_id, version, row["seq"])


async def _take_from_summaries(c: Connection, tenant: str, document_id: str) -> None:
    """What was made of a turn goes with it."""
    cursor = await c.execute(
        "SELECT conversation_id, seq FROM versions WHERE tenant = %s AND document_id = %s AND kind = 'turn'",
        (tenant, document_id),
    )
    turn = await cursor.fetchone()
    if turn is not None:
        # The conversation's row first, so that a summary that is being written is seen, or sees this.
        await generations.bump_conversation(c, tenant, turn["conversation_id"])
        await summaries.withdraw(c, tenant, turn["conversation_id"], turn["seq"])


_WITH_NEXT_VERSION = (
    "WITH d AS (INSERT INTO documents (tenant, document_id, latest_version) VALUES (%s, %s, 1)"
    " ON CONFLICT (tenant, document_id) DO UPDATE SET latest_version = documents.latest_version + 1"
    " RETURNING latest_version)"
)
"""`d`: the document's row, made or locked, with its next version's number. One statement with what follows."""


def _accepted(document_id: str, row: dict[str, Any] | None) -> Accepted:
    assert row is not None
    return Accepted(document_id, row["version"], row["seq"])
