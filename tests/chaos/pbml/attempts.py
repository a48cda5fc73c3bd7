"""What clients of PBML tried, what they were told, and what the ledger says of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

ACKNOWLEDGED, UNKNOWN = "acknowledged", "unknown"


@dataclass(slots=True)
class Write:
    """A document's version, a turn or a deletion. Times are monotonic seconds; `subject` is the document's id or the
    turn's conversation, `token` a word that no other write has; `seq` is of the watermark, where one was given.
    What was sent several times with one Idempotency-Key is one write."""

    kind: str
    subject: str
    token: str
    text: str
    start: float
    end: float = 0.0
    outcome: str = UNKNOWN
    watermark: str | None = None
    detail: str = ""

    @property
    def acknowledged(self) -> bool:
        return self.outcome == ACKNOWLEDGED

    @property
    def seq(self) -> int | None:
        """Its place in the ledger; None where it was acknowledged into a replica's spool, or not at all."""
        origin, _, number = (self.watermark or "").partition(":")
        return int(number) if origin == "pg" else None

    @property
    def local(self) -> bool:
        """Whether it was acknowledged into a replica's spool."""
        return self.acknowledged and (self.watermark or "").startswith("spool:")


@dataclass(slots=True)
class Read:
    """A fetch with the watermark of an acknowledged write. `found` are the tokens of the subject's texts in it."""

    write: Write
    start: float
    end: float = 0.0
    found: frozenset[str] = frozenset()
    missing: bool = False
    degraded: bool = False
    error: str = ""


@dataclass(slots=True)
class History:
    """Everything of a round, in the order it began."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """A version as the ledger has it. `content_md5` is empty where a newer one replaced it, and its text is gone."""

    seq: int
    document_id: str
    conversation_id: str
    version: int
    kind: str
    status: str
    content_md5: str
    live: bool
