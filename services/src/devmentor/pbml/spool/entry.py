"""A write as the spool keeps it: self-contained, numbered by nobody, named by an id that the ledger knows too."""

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

Lane = tuple[str, str, str]
"""(kind, tenant, document or conversation): writes of one lane keep their order."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RecordDamaged(Exception):
    """A stored record is not what was written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document or a turn. `accepted_us`: microseconds since 1970 by this host's clock, 0 until it is spooled."""

    replica: str
    tenant: str
    kind: str
    document_id: str
    content: str
    conversation_id: str | None = None
    role: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    request_sha256: str = ""
    entry_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    accepted_us: int = 0

    @property
    def lane(self) -> Lane:
        """What it must not be overtaken in."""
        return lane(self.tenant, self.document_id, self.conversation_id)

    @property
    def accepted_at(self) -> datetime:
        """When it was acknowledged."""
        return _EPOCH + timedelta(microseconds=self.accepted_us)

    @property
    def watermark(self) -> str:
        """What the client is told: it names the replica, since others know nothing of it yet."""
        return f"spool:{self.replica}:{self.entry_id}"

    def response(self) -> dict[str, Any]:
        """The acknowledgement's body without the durability. A version is given when PostgreSQL takes it."""
        return spooled_response(self.kind, self.watermark, self.document_id)

    def accepted(self, at_us: int) -> "Entry":
        """The same, acknowledged at that moment."""
        return replace(self, accepted_us=at_us)

    def encode(self) -> bytes:
        """The record. JSON, so that a hand can read what a program can not."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()


def lane(tenant: str, document_id: str, conversation_id: str | None) -> Lane:
    """Turns are ordered by their conversation, documents by themselves."""
    return ("document", tenant, document_id) if conversation_id is None else ("turn", tenant, conversation_id)


def turn_name(conversation_id: str) -> str:
    """A new turn's document id. The tilde can not begin a client's document id, so the two never meet."""
    return f"~turn/{conversation_id}/{uuid.uuid4().hex}"


def lane_of(tenant: str, document_id: str) -> Lane:
    """The lane of a document or, by its name, of a turn."""
    parts = document_id.split("/")
    conversation = parts[1] if len(parts) == 3 and parts[0] == "~turn" else None
    return lane(tenant, document_id, conversation)


def spooled_response(kind: str, watermark: str, document_id: str) -> dict[str, Any]:
    """As Entry.response, from what is known without the record."""
    return {"watermark": watermark} | ({} if kind == "turn" else {"document_id": document_id, "version": None})


def digest(record: bytes) -> bytes:
    """The record's checksum."""
    return hashlib.sha256(record).digest()


def decode(record: bytes, checksum: bytes) -> Entry:
    """The inverse of Entry.encode. Raises RecordDamaged."""
    if not isinstance(record, bytes) or digest(record) != checksum:  # a damaged row may be of another type
        raise RecordDamaged("the checksum does not fit the record")
    try:
        return Entry(**json.loads(record))
    except (ValueError, TypeError) as error:
        raise RecordDamaged(f"not an entry: {error}") from error


def microseconds(at: datetime) -> int:
    """Since 1970, without rounding."""
    return (at - _EPOCH) // timedelta(microseconds=1)
