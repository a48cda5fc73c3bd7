"""`make bench-pbml`: what PBML costs and how it scales, beside mem0 and the bare calls, in one run on one machine.

    python -m tests.bench.pbml.run --sizes 1000,10000,100000 [--only ingest,fetch] [--only-look]

docs/pbml-bench.md tells what is measured. The result goes to .cache/bench/pbml.json; report.py writes the page from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from module_utils.devmentor.artifacts_cache import sha256_of
from tests.bench.pbml import corpus, fetch, ingest, report, vectors
from tests.bench.pbml.client import CHUNK_CHARS, Floor, Pbml
from tests.bench.pbml.ledger import INDEXES, Material, fill, real_share, reconciled, sized, turns, versions
from tests.bench.pbml.options import parsed
from tests.bench.pbml.stack import Stack, everything, key_of, pretended
from tests.bench.qwen.systems import Running
from tests.chaos.postgres.run import commit
from tools.runs import ROOT

RESULT = ROOT / ".cache" / "bench" / "pbml.json"
PARTIAL = RESULT.with_name("pbml-sizes.json")
VECTORS = ROOT / ".cache" / "bench" / "pbml-vectors"


def material(url: str, real: int, model: Path) -> Material:
    """The corpus's first texts with about `real` chunks, embedded (from the cache where they were before)."""
    documents: list[tuple[corpus.Text, str, list[vectors.Chunk]]] = []
    chunks: list[vectors.Chunk] = []
    for text in corpus.texts():
        if len(chunks) >= real:
            break
        found, chunker = vectors.cut(text, CHUNK_CHARS)
        found = found[: real - len(chunks)]
        if found:
            documents.append((text, chunker, found))
            chunks += found
    if len(chunks) < real:
        print(f"the corpus has {len(chunks)} chunks, fewer than the {real} that were asked for")
    return Material(documents, vectors.real(url, chunks, VECTORS, sha256_of(model)))


def fits(url: str, text: str) -> bool:
    """Whether the model takes the text as it is: the peer and the floor do not cut what is longer (PBML does)."""
    asked = urllib.request.Request(f"{url}/tokenize", json.dumps({"content": text}).encode())
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return len(json.loads(answer.read())["tokens"]) <= 500


def kinds(url: str, options: argparse.Namespace) -> dict[str, ingest.Kind]:
    """What is ingested: paragraphs as a person's memories have them, one and many a request, and pages of a few
    chunks."""
    found = list(corpus.texts())[::-1]  # from the end: not those that the sizes are made of

    def pages_of() -> Iterator[corpus.Text]:
        for text in found:
            chunks = vectors.cut(text, CHUNK_CHARS)[0]
            if 4 <= len(chunks) <= 24 and all(fits(url, chunk.embedded) for chunk in chunks):
                yield text

    short, imported, pages = options.short, options.imported, options.pages
    paragraphs = corpus.take(corpus.paragraphs(found), short + imported, "paragraphs") if short + imported else []
    wanted = {
        "short": (paragraphs[:short], 1),
        "import": (paragraphs[short:], options.together),
        "page": (corpus.take(pages_of(), pages, "pages of 4 to 24 chunks") if pages else [], 1),
    }
    return {kind: (texts, together) for kind, (texts, together) in wanted.items() if texts}


async def waits_for_quorum(stack: Stack, session: aiohttp.ClientSession) -> bool:
    """Whether a write is not acknowledged while no standby takes WAL, and is as soon as one does."""
    client = Pbml(session, f"http://127.0.0.1:{stack.environment['PBML_PORT']}", key_of("bench"))
    if not await client.ingest([{"id": "quorum/before", "text": "with standbys"}]):
        raise SystemExit(f"a first document was not acknowledged on the quorum: {client.wrong}")
    with stack.postgres.receivers_stopped():
        waiting = asyncio.create_task(client.ingest([{"id": "quorum/without", "text": "without standbys"}]))
        done, _ = await asyncio.wait([waiting], timeout=1.5)
    return not done and await waiting


@asynccontextmanager
async def clients(stack: Stack) -> Any:
    """A session without a limit on connections, and the floor's."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        bare = Floor(session, stack.postgres.conninfo, stack.qdrant.url, stack.engine.url)
        await bare.open()
        try:
            yield session, bare
        finally:
            await bare.close()


async def ingest_part(
    stack: Stack, services: Sequence[Running], texts: dict[str, ingest.Kind], options: argparse.Namespace
) -> dict[str, Any]:
    async with clients(stack) as (session, bare):
        waits = await waits_for_quorum(stack, session)
        steady = corpus.take(corpus.paragraphs(corpus.texts()), options.steady, "paragraphs")
        bench = ingest.Bench(stack, services, session, bare)
        found = await ingest.measure(bench, texts, options.systems, options.concurrency, options.rounds)
        return {
            "quorum_waits": waits,
            "concurrency": options.concurrency,
            "kinds": found,
            "steady": await ingest.steady(stack, session, steady, options.ingest_rate),
        }


def load_more(stack: Stack, tenant: str, more: Iterator[Any]) -> dict[str, Any]:
    """Ledger rows by COPY, the index on words and the points by the product's own commands; seconds of each."""
    began = time.monotonic()
    with stack.postgres.connect() as c:
        for index in INDEXES:
            c.execute(f"DROP INDEX IF EXISTS {index}")
        rows = fill(c, tenant, more)
        filled = time.monotonic()
    stack.command("migrate")
    with stack.postgres.connect() as c:
        c.execute("ANALYZE")
        c.execute("CHECKPOINT")
    indexed = time.monotonic()
    done = stack.command("rebuild", "--restart")
    return {
        "rows": rows,
        "copy_s": filled - began,
        "words_index_s": indexed - filled,
        "rebuild_s": done["seconds"],
        "rebuilt": done["written"],
        "rebuild_per_s": done["written"] / max(done["seconds"], 0.1),
        "points": done["points"],
    }


def fetch_part(stack: Stack, options: argparse.Namespace, have: Material) -> dict[str, Any]:
    """Each size after the one before it, in one tenant; the conversations after the first of at least 10^4 chunks."""
    source = versions(have, options.seed)
    needed = options.recall_queries + int(options.rate * options.seconds) + 100
    asked = fetch.queries(have, needed, options.seed)
    sizes: dict[str, Any] = {}
    talks: dict[str, Any] = {}
    loaded = 0
    for size in options.sizes:
        loading = load_more(stack, "bench", sized(source, size - loaded))
        loaded = size
        with stack.worker():  # whose reconciler walks meanwhile, as it does on a host
            measured_here = asyncio.run(_at_size(stack, options, asked))
        sizes[str(size)] = measured_here | {
            "load": loading,
            "real_share": real_share(size, have.chunks),
            "load_average": os.getloadavg()[0],
        }
        keep(sizes)
        print(f"fetch at {size}: {json.dumps(sizes[str(size)])}", flush=True)
        if "conversation" in options.only and not talks and (size >= 10_000 or size == options.sizes[-1]):
            talks = conversation_part(stack, options, have, asked)
    points = sizes[str(options.sizes[-1])]["load"]["points"]
    compared = reconciled(dict(stack.environment), points)
    print(f"reconciled: {compared}", flush=True)
    return {"sizes": sizes, "conversation": talks, "reconciled": compared}


def keep(sizes: dict[str, Any]) -> None:
    """What there is so far: a run of an hour that breaks off has measured something."""
    PARTIAL.parent.mkdir(parents=True, exist_ok=True)
    PARTIAL.write_text(json.dumps(sizes, indent=1) + "\n")


def of(options: argparse.Namespace) -> fetch.Load:
    return fetch.Load(options.rate, options.seconds, options.fetch_rounds)


async def _at_size(stack: Stack, options: argparse.Namespace, asked: list[str]) -> dict[str, Any]:
    async with clients(stack) as (session, bare):
        settled = await fetch.settled(bare)
        found = await fetch.latency(stack, session, bare, asked, of(options))
        recall = await fetch.recall(bare, asked[-options.recall_queries :])
        return found | {"recall": recall, "qdrant": settled, "mended": await mended(stack, session)}


async def mended(stack: Stack, session: aiohttp.ClientSession) -> int:
    """Points that the worker's reconciler found missing or too many since it was started."""
    async with session.get(f"http://127.0.0.1:{stack.environment['PBML_WORKER_PORT']}/metrics") as answer:
        text = await answer.text()
    return int(
        sum(float(value) for value in re.findall(r"^pbml_reconciled_points_total\{.*\} (\S+)", text, re.MULTILINE))
    )


def conversation_part(stack: Stack, options: argparse.Namespace, have: Material, asked: list[str]) -> dict[str, Any]:
    names = [f"tokens-{tokens}" for tokens in options.talks]
    loading = [
        load_more(stack, "talks", turns(have, name, tokens, options.seed + tokens))
        for name, tokens in zip(names, options.talks, strict=True)
    ]

    async def measure() -> dict[str, Any]:
        async with clients(stack) as (session, bare):
            await fetch.settled(bare)
            return await fetch.conversations(stack, session, names, asked, of(options))

    with stack.worker():
        found = asyncio.run(measure())
    print(f"conversations: {json.dumps(found)}", flush=True)
    return {
        "tokens": options.talks,
        "turns": [each["rows"] for each in loading],
        "fetches": [found[name] for name in names],
        "wrong": found["wrong"],
    }


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A folder that PostgreSQL's owner can reach, removed at the end."""
    made = Path(tempfile.mkdtemp(prefix="pbml-bench-", dir=parent or "/var/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    began, load_before = time.monotonic(), os.getloadavg()[0]
    found: dict[str, Any] = {}
    with scratch(options.directory) as directory, everything(
        directory, options.model if options.engine == "real" else None, options.standbys, options.postgres_gib
    ) as stack:  # fmt: skip
        have = material(stack.engine.url, options.real, options.model) if "fetch" in options.only else None
        if options.standbys and stack.postgres.quorum() != options.standbys:
            raise SystemExit(f"{stack.postgres.quorum()} standbys of {options.standbys} count for the quorum")
        found["machine"] = {
            "cores": os.cpu_count(),
            "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
            "load_before": load_before,
        }
        found["versions"] = {
            "postgres": stack.postgres.settings(),
            "standbys": options.standbys,
            "qdrant": stack.qdrant_version,
            "mem0": ingest.peer_version(),
        }
        if "ingest" in options.only:
            texts = kinds(stack.engine.url, options)
            if options.engine == "real":
                found["ingest"] = ingested(stack, texts, options)
            with pretended() as nothing:
                found["ingest_pretended"] = ingested(stack.with_engine(nothing), texts, options)
        if have is not None:
            with stack.api():
                found["fetch"] = fetch_part(stack, options, have)
    return found | {"seconds": time.monotonic() - began}


def ingested(stack: Stack, texts: dict[str, ingest.Kind], options: argparse.Namespace) -> dict[str, Any]:
    """Ingest by all systems with the stack's engine; nothing of it is left."""
    with stack.api() as api, stack.worker() as worker:
        found = asyncio.run(ingest_part(stack, [api, worker], texts, options))
    empty(stack)
    return found


def empty(stack: Stack) -> None:
    """The sizes begin with nothing: what was ingested goes, also from Qdrant."""
    with stack.postgres.connect() as c:
        c.execute("TRUNCATE documents, versions, chunks, generations, conversations, procrastinate_jobs CASCADE")
        c.execute("DROP TABLE IF EXISTS floor")
        # The count of what every tenant has is no walk that could begin again: `migrate` goes on with it as it is.
        c.execute(
            "UPDATE maintenance SET state = '{}', incomplete = false, holder = NULL, held_until = NULL"
            " WHERE task <> 'usage'"
        )
    for other in ("floor", "mem0"):
        asked = urllib.request.Request(f"{stack.qdrant.url}/collections/{other}", method="DELETE")
        with urllib.request.urlopen(asked, timeout=60):
            pass
    stack.command("rebuild", "--recreate", "pbml")


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    # A run that is told to end takes its servers along.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    known = {name: value for name, value in vars(options).items() if name not in ("model", "directory", "only_look")}
    result = {"commit": commit(), "settings": known, **measured(options)}
    print(report.tables(result))
    if not options.only_look:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        report.write(RESULT)
    return report.verdict(result, speed=not options.short_form)


if __name__ == "__main__":
    sys.exit(main())
