"""What waits in the spool, for a fetch with one of its watermarks that PostgreSQL can not answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from devmentor.pbml.spool.entry import Entry, RecordDamaged
from devmentor.pbml.spool.spool import Kept, Spool
from devmentor.pbml.store.ledger import Missing, Pending, Turn

NEWEST = 2**31 - 1
"""Stands for a version that PostgreSQL has not given yet and that is newer than all it has; it is shown as"""
UNNUMBERED = 0
"""which also stands for one of which nobody here knows whether it is newer."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Newest first; of a document the newest. `missing`: what can not be read, and what is more than was asked for."""

    entries: Sequence[tuple[Kept, Entry]]
    missing: Missing

    def pending(self, state_at_us: float) -> list[Pending]:
        """As the ledger's, beside a state that was looked up at `state_at_us`, microseconds of this host's clock.

        What was acknowledged here after that is newer than all in the state. Of what was acknowledged before, a newer
        version may have come into the state by another replica: then both are shown.
        """
        return [
            Pending(
                seq=0,
                document_id=entry.document_id,
                version=NEWEST if kept.accepted_us > state_at_us else UNNUMBERED,
                kind=entry.kind,
                title=entry.title,
                content=entry.content,
            )
            for kept, entry in self.entries
        ]

    def turns(self) -> list[Turn]:
        """Turns among them."""
        return [
            Turn(0, entry.document_id, entry.role or "user", entry.content)
            for _kept, entry in self.entries
            if entry.conversation_id is not None
        ]


async def up_to(
    spool: Spool, last: Kept, conversation_id: str | None, document_ids: Sequence[str] | None, most: int
) -> Shown:
    """The tenant's entries up to `last`, in the scope of a fetch; at most so many are read. Raises SpoolUnusable."""
    asked = set(document_ids) if document_ids is not None else None
    newest: dict[str, Kept] = {}
    for kept in spool.waiting_until(last):
        kind, _tenant, name = kept.lane
        if name == conversation_id if kind == "turn" else asked is None or name in asked:
            newest.setdefault(kept.document_id, kept)
    found: list[tuple[Kept, Entry]] = []
    damaged = 0
    chosen = list(newest.values())
    for kept in chosen[:most]:
        try:
            found.append((kept, await spool.read(kept)))
        except RecordDamaged:
            damaged += 1  # the replay will set it aside, and say so
    return Shown(found, Missing(failed=damaged, unindexed=max(0, len(chosen) - most)))
