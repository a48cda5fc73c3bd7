"""Real embeddings of the corpus's chunks, kept between runs, and vectors made of them for the largest sizes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from devmentor.pbml.embedder import Embedder
from devmentor.pbml.preprocess import embedding_input, prepare
from tests.bench.pbml.corpus import Text

DIMENSIONS = 384
NOISE = 0.6
"""Length of what is added to a real vector of length 1: the cosine of a copy and its original is about 0.86, as near as
neighbouring chunks of one page are to each other."""
_BATCH = 32
_SAVE_EVERY = 32

Vectors = NDArray[np.float32]


class Chunk:
    """A chunk of a text as the product cuts it, and what it embeds for it."""

    __slots__ = ("body", "document", "end", "number", "section", "start")

    def __init__(self, document: Text, number: int, section: str, start: int, end: int, body: str) -> None:
        self.document, self.number, self.section = document, number, section
        self.start, self.end, self.body = start, end, body

    @property
    def embedded(self) -> str:
        return embedding_input(self.document.title, self.section, self.body)


def cut(document: Text, chunk_chars: int) -> tuple[list[Chunk], str]:
    """The product's chunks of a text and the name of what cut them."""
    prepared = prepare(document.id, document.title, document.body, chunk_chars)
    return [Chunk(document, k.number, k.section, k.start, k.end, k.text) for k in prepared.chunks], prepared.chunker


def real(url: str, chunks: Sequence[Chunk], directory: Path, model_sha256: str) -> Vectors:
    """A vector of length 1 for each chunk; computed once for each model and text, by the platform's own client.

    A run that was broken off goes on where it was.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = [chunk.embedded for chunk in chunks]
    keys = [hashlib.sha256(f"{model_sha256}\n{text}".encode()).hexdigest() for text in texts]
    store = directory / "vectors.npz"
    known: dict[str, Vectors] = {}
    if store.exists():
        with np.load(store) as saved:
            known = dict(zip(json.loads(str(saved["keys"])), saved["vectors"], strict=True))
    missing = list(dict.fromkeys(key for key in keys if key not in known))
    if missing:
        text_of = dict(zip(keys, texts, strict=True))
        asyncio.run(_embed(url, [(key, text_of[key]) for key in missing], known, store))
    return np.stack([known[key] for key in keys]).astype(np.float32)


async def _embed(url: str, wanted: Sequence[tuple[str, str]], known: dict[str, Vectors], store: Path) -> None:
    embedder = Embedder([url], "embeddings", DIMENSIONS, timeout_s=300, concurrency=2)
    await embedder.open()
    try:
        for first in range(0, len(wanted), 2 * _BATCH * _SAVE_EVERY):
            part = wanted[first : first + 2 * _BATCH * _SAVE_EVERY]
            batches = [part[at : at + _BATCH] for at in range(0, len(part), _BATCH)]
            answers = await asyncio.gather(*(embedder.embed([text for _, text in batch]) for batch in batches))
            for batch, vectors in zip(batches, answers, strict=True):
                known |= {key: np.asarray(v, np.float32) for (key, _), v in zip(batch, vectors, strict=True)}
            _save(known, store)
            print(f"embedded {first + len(part)} of {len(wanted)} chunks", flush=True)
    finally:
        await embedder.close()


def _save(known: dict[str, Vectors], store: Path) -> None:
    staged = store.with_name("staged.npz")
    np.savez(staged, keys=np.asarray(json.dumps(list(known))), vectors=np.stack(list(known.values())))
    staged.replace(store)


def perturbed(vectors: Vectors, seed: int, noise: float = NOISE) -> Vectors:
    """A vector of length 1 near each of these: what stands for the embedding of a text that is like it."""
    random = np.random.default_rng(seed)
    step = random.standard_normal(vectors.shape, dtype=np.float32)
    step *= noise / np.linalg.norm(step, axis=1, keepdims=True)
    moved = vectors + step
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)
