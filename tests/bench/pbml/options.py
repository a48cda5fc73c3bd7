"""What `make bench-pbml` can be told."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from devmentor.pbml.models import MAX_TOGETHER
from tests.bench.pbml.stack import MODEL

PARTS = ("ingest", "fetch", "conversation")
SYSTEMS = ("pbml", "mem0", "floor")
SHORT_FORM = {
    **{"sizes": [300, 3000], "talks": [1000, 100_000], "real": 150, "rate": 2.0, "seconds": 8.0, "fetch_rounds": 2},
    **{"recall_queries": 50},
    **{"short": 60, "imported": 60, "together": 10},
    **{"pages": 6, "rounds": 1, "concurrency": 8, "steady": 20, "ingest_rate": 4.0, "postgres_gib": 1.0},
}


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    words = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(prog="bench-pbml", description="PBML beside mem0 and bare calls")
    parser.add_argument("--sizes", type=numbers, default=[1000, 10_000], help="chunks, ascending")
    parser.add_argument("--talks", type=numbers, default=[10_000, 10_000_000], help="conversations' lengths in tokens")
    parser.add_argument("--real", type=int, default=5000, help="chunks with an embedding of their own text; kept")
    parser.add_argument("--rate", type=float, default=5.0, help="fetches a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="of fetches, for each system and size")
    parser.add_argument("--fetch-rounds", type=int, default=4)
    parser.add_argument("--recall-queries", type=int, default=200)
    parser.add_argument("--short", type=int, default=1800, help="paragraphs to ingest, all systems and rounds together")
    parser.add_argument("--imported", type=int, default=4800, help="paragraphs to ingest many a request, likewise")
    parser.add_argument("--together", type=int, default=25, help="of those in one request")
    parser.add_argument("--pages", type=int, default=90, help="pages to ingest, likewise")
    parser.add_argument("--concurrency", type=int, default=16, help="clients that ingest at once")
    parser.add_argument("--rounds", type=int, default=2, help="of ingest")
    parser.add_argument("--systems", type=words, default=list(SYSTEMS), help="that ingest: " + ",".join(SYSTEMS))
    parser.add_argument("--steady", type=int, default=300, help="paragraphs ingested at a fixed rate")
    parser.add_argument("--ingest-rate", type=float, default=10.0, help="of them a second")
    engine_help = "pretended: one that computes nothing, for ingest alone"
    parser.add_argument("--engine", choices=("real", "pretended"), default="real", help=engine_help)
    parser.add_argument("--standbys", type=int, default=2)
    parser.add_argument("--postgres-gib", type=float, default=4.0, help="memory that role postgres would tune for")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL, help="the embedding model (make models)")
    parser.add_argument("--directory", type=Path, help="where the data is written (default /var/tmp)")
    parser.add_argument("--only", type=words, default=list(PARTS), help=",".join(PARTS))
    parser.add_argument("--short-form", action="store_true", help="CI's: small sizes, speed is not judged")
    parser.add_argument("--only-look", action="store_true", help="print the tables, write nothing")
    if "--short-form" in (sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(**SHORT_FORM)
    options = parser.parse_args(arguments)
    for given, names in ((options.only, PARTS), (options.systems, SYSTEMS)):
        if unknown := sorted(set(given) - set(names)):
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(names)}")
    if options.sizes != sorted(set(options.sizes)):
        parser.error("--sizes: ascending, each once")
    if not 1 <= options.together <= MAX_TOGETHER:
        parser.error(f"--together: 1 to {MAX_TOGETHER}")
    if not options.model.exists():
        parser.error(f"{options.model} is not there: run make models, or name it with --model")
    if options.engine == "pretended":
        options.only = ["ingest"]
    options.real = min(options.real, options.sizes[-1])
    return options
