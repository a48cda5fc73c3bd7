"""What a state has of a document, and the digest of it. Pure functions.

A tenant's digest is the sum of its documents' items modulo 2^256: the order of changes does not matter, and an item is
added and taken away without looking at the others. An item is a SHA-256 of everything that a fetch may serve. (Bellare
and Micciancio, A New Paradigm for Collision-free Hashing: Incrementality at Reduced Cost, 1997, show what such sums
hold against an attacker; here they find faults.) `source.ITEMS` computes the same items in PostgreSQL.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Key = tuple[str, str]
"""tenant, document id"""

Known = dict[Key, tuple[int, bytes]]
"""Live versions whose chunks are at hand: version, digest of the chunks."""

_MODULUS = 1 << 256


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk as the ledger has it; `vector` is float32, little endian."""

    chunk: int
    section: str
    start: int
    end: int
    body: str
    vector: bytes


@dataclass(frozen=True, slots=True)
class Live:
    """A live version. `chunks` is None where only their digest was needed."""

    version: int
    seq: int
    kind: str
    conversation_id: str | None
    title: str | None
    chunks_sha256: bytes
    chunks: Sequence[Chunk] | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """An acknowledged version that is newer than what is live. `content` is None where it was given up."""

    version: int
    seq: int
    kind: str
    conversation_id: str | None
    title: str | None
    content: str | None
    failed: bool


@dataclass(frozen=True, slots=True)
class Said:
    """A turn's words, which are served from their acceptance on."""

    seq: int
    conversation_id: str
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Entry:
    """All that a state has of a document; nothing at all where the document was deleted."""

    tenant: str
    document_id: str
    live: Live | None = None
    waiting: Sequence[Waiting] = ()
    said: Said | None = None

    @property
    def key(self) -> Key:
        """Whose it is."""
        return self.tenant, self.document_id


@dataclass(frozen=True, slots=True)
class Pinned:
    """A pin as a state has it; `updated_at` is ISO 8601."""

    name: str
    body: str
    updated_at: str


def _text(value: str | None) -> bytes:
    return hashlib.sha256((value or "").encode()).digest()


def chunks_sha256(chunks: Iterable[Chunk]) -> bytes:
    """The digest of a version's chunks, which are in the order of their numbers."""
    whole = hashlib.sha256()
    for k in chunks:
        place = struct.pack(">iii", k.chunk, k.start, k.end)
        vector = hashlib.sha256(k.vector).digest()
        whole.update(hashlib.sha256(place + _text(k.section) + _text(k.body) + vector).digest())
    return whole.digest()


def item(entry: Entry) -> bytes | None:
    """32 bytes; None where there is nothing."""
    if entry.live is None and not entry.waiting and entry.said is None:
        return None
    whole = hashlib.sha256(_text(entry.tenant) + _text(entry.document_id))
    if (live := entry.live) is not None:
        whole.update(b"L" + struct.pack(">iq", live.version, live.seq))
        whole.update(_text(live.kind) + _text(live.conversation_id) + _text(live.title) + live.chunks_sha256)
    for w in sorted(entry.waiting, key=lambda w: w.version):
        whole.update((b"F" if w.failed else b"W") + struct.pack(">iq", w.version, w.seq))
        whole.update(_text(w.title) + _text(w.content))
    if (said := entry.said) is not None:
        whole.update(b"S" + struct.pack(">q", said.seq) + _text(said.role) + _text(said.content))
    return whole.digest()


def exchanged(digest: bytes, old: bytes | None, new: bytes | None) -> bytes:
    """A tenant's digest with one item taken away and one added."""
    total = int.from_bytes(digest, "big") - int.from_bytes(old or b"", "big") + int.from_bytes(new or b"", "big")
    return (total % _MODULUS).to_bytes(32, "big")


NOTHING = bytes(32)
"""The digest of no documents."""
