"""Fills the ledger in bulk with the rows that the pipeline would have written, and nothing else.

The pipeline embeds each chunk, which takes a processor some ten milliseconds: 10^6 of them would take hours. So rows
of live versions are written by COPY, and Qdrant is filled from them by the product's own `rebuild`. That the two agree,
and that nothing is missing or too much, the product's own reconciler says afterwards (`reconciled`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg

from devmentor.pbml import reconcile
from devmentor.pbml.db import Database
from devmentor.pbml.index import Index
from devmentor.pbml.rebuild import AWAY
from devmentor.pbml.reconcile import Reconciler
from devmentor.pbml.settings import Settings
from devmentor.pbml.store.generations import GENERATION_SHARDS
from tests.bench.pbml.corpus import Text
from tests.bench.pbml.vectors import Chunk, Vectors, perturbed

_COMPARED, _FAILURES = 5000, 20
INDEXES = ("chunks_lexemes",)
"""Of `pbml.indexes`: filled row by row they take several times as long as built at once; `migrate` builds them."""


@dataclass(frozen=True, slots=True)
class Version:
    """A live version: a document, or a turn of a conversation. `copy`: which copy of the corpus it is, 0 the texts
    themselves."""

    document_id: str
    title: str | None
    conversation_id: str | None
    chunker: str
    bodies: list[str]
    sections: list[str]
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Material:
    """The corpus's chunks with their real vectors, in the order of documents."""

    documents: list[tuple[Text, str, list[Chunk]]]
    vectors: Vectors

    @property
    def chunks(self) -> int:
        return len(self.vectors)


def versions(material: Material, seed: int) -> Iterator[Version]:
    """The texts, then copies of them without end, each with vectors of its own; a copy's chunks end in its number, or
    fetches would take them for the same text."""
    for copy in itertools.count():
        vectors = perturbed(material.vectors, seed + copy) if copy else material.vectors
        first = 0
        for text, chunker, chunks in material.documents:
            name = f"{text.id}~{copy}" if copy else text.id
            bodies = [f"{chunk.body.rstrip()} copy{copy}\n" if copy else chunk.body for chunk in chunks]
            mine = vectors[first : first + len(chunks)]
            first += len(chunks)
            yield Version(name, text.title, None, chunker, bodies, [chunk.section for chunk in chunks], mine)


def sized(found: Iterator[Version], chunks: int) -> Iterator[Version]:
    """As many of them as have so many chunks; the last one is shortened."""
    left = chunks
    while left > 0:
        version = next(found)
        if len(version.bodies) > left:
            cut = slice(0, left)
            version = Version(
                *(version.document_id, version.title, version.conversation_id, version.chunker),
                *(version.bodies[cut], version.sections[cut], version.vectors[cut]),
            )
        left -= len(version.bodies)
        yield version


def turns(material: Material, conversation_id: str, tokens: int, seed: int) -> Iterator[Version]:
    """A conversation of that length, four bytes to a token, its turns the corpus's chunks."""
    said, bytes_left = 0, 4 * tokens
    for version in versions(material, seed):
        for body, vector in zip(version.bodies, version.vectors, strict=True):
            text = body.strip()
            if not text:
                continue
            said += 1
            name = f"~turn/{conversation_id}/{said:032x}"
            yield Version(name, None, conversation_id, version.chunker, [text], [""], vector[None, :])
            bytes_left -= len(text.encode())
            if bytes_left <= 0:
                return


def fill(connection: psycopg.Connection[Any], tenant: str, found: Iterator[Version], most_rows: int = 20_000) -> int:
    """Write them; how many chunks. The loader's commits do not wait for standbys: nothing of it is acknowledged."""
    connection.execute("SET synchronous_commit = off")
    written = 0
    while page := list(_page(found, most_rows)):
        with connection.transaction():
            written += _write(connection, tenant, page)
    connection.execute("RESET synchronous_commit")
    return written


def _page(found: Iterator[Version], most_chunks: int) -> Iterator[Version]:
    chunks = 0
    for version in found:
        yield version
        chunks += len(version.bodies)
        if chunks >= most_chunks:
            return


def _write(c: psycopg.Connection[Any], tenant: str, page: Sequence[Version]) -> int:
    cursor = c.cursor()
    with cursor.copy("COPY documents (tenant, document_id, latest_version, live_version) FROM STDIN") as copy:
        for v in page:
            copy.write_row((tenant, v.document_id, 1, 1))
    with cursor.copy(
        "COPY versions (tenant, document_id, version, kind, conversation_id, role, title, content, content_bytes,"
        " status, chunks, chunker, embedded_at, indexed_at, live_at) FROM STDIN"
    ) as copy:
        for number, v in enumerate(page):
            content = "".join(v.bodies)
            kind, role = ("turn", ("user", "assistant")[number % 2]) if v.conversation_id else ("document", None)
            copy.write_row(
                (
                    *(tenant, v.document_id, 1, kind, v.conversation_id, role, v.title, content),
                    *(len(content.encode()), "live", len(v.bodies), v.chunker, "now", "now", "now"),
                )
            )
    written = 0
    with cursor.copy(
        "COPY chunks (tenant, document_id, version, chunk, conversation_id, section, start_char, end_char, body,"
        " embedding) FROM STDIN WITH (FORMAT binary)"
    ) as copy:
        copy.set_types(["text", "text", "int4", "int4", "text", "text", "int4", "int4", "text", "bytea"])
        for v in page:
            start = 0
            for number, (body, section, vector) in enumerate(zip(v.bodies, v.sections, v.vectors, strict=True)):
                packed = vector.astype("<f4").tobytes()
                place = (v.conversation_id, section, start, start + len(body))
                copy.write_row((tenant, v.document_id, 1, number, *place, body, packed))
                start += len(body)
                written += 1
    talks = {v.conversation_id for v in page if v.conversation_id is not None}
    cursor.executemany(
        "INSERT INTO conversations VALUES (%s, %s, 1) ON CONFLICT DO NOTHING", [(tenant, talk) for talk in talks]
    )
    cursor.executemany(
        "INSERT INTO generations VALUES (%s, %s, 1)"
        " ON CONFLICT (tenant, shard) DO UPDATE SET generation = generations.generation + 1",
        [(tenant, shard) for shard in range(GENERATION_SHARDS)],
    )
    return written


def reconciled(environment: dict[str, str], points: int) -> dict[str, int]:
    """One whole walk of the product's reconciler in both directions: points that were missing or too many, and how many
    it compared. No worker may run beside it. Raises SystemExit where it compared less than there is."""

    async def walk() -> dict[str, int]:
        settings = Settings(tenants_file=None)
        database, index = Database(settings, "pbml-bench"), Index(settings)
        await database.open()
        before = _counts()
        try:
            work, failed = Reconciler(database, index, f"bench/{os.getpid()}", _COMPARED), 0
            async with database.pool.connection() as c:
                await c.execute(
                    "UPDATE maintenance SET state = '{}', holder = NULL, held_until = NULL WHERE task = 'reconcile'"
                )
            while any(_counts()[walk] == before[walk] for walk in ("ledger walks", "index walks")):
                try:
                    stepped = await work.step()
                except AWAY:  # a page too many for the product's time limits beside an optimiser
                    failed += 1
                    stepped = False
                    if failed > _FAILURES:
                        raise
                if not stepped:
                    await asyncio.sleep(1)
        finally:
            await index.close()
            await database.close()
        after = _counts()
        return {name: after[name] - before[name] for name in after}

    saved = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    try:
        found = asyncio.run(walk())
    finally:
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    if min(found["ledger compared"], found["index compared"]) < points:
        raise SystemExit(f"the reconciler compared {found}, there are {points} points")
    return found


def _counts() -> dict[str, int]:
    value = lambda counter, label: int(counter.labels(label)._value.get())  # noqa: E731
    return {
        "missing": value(reconcile.MENDED, "missing"),
        "orphans": value(reconcile.MENDED, "orphan"),
        "ledger compared": value(reconcile.COMPARED, "ledger"),
        "index compared": value(reconcile.COMPARED, "index"),
        "ledger walks": value(reconcile.PASSES, "ledger"),
        "index walks": value(reconcile.PASSES, "index"),
    }


def real_share(size: int, real: int) -> float:
    """Which part of the chunks has an embedding of its own text."""
    return float(np.clip(real / size, 0.0, 1.0))
