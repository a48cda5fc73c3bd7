"""`make bench-semantic-cache`: how often the semantic cache would answer wrongly, and how often at all.

    python -m tests.bench.semantic_cache.run [--packages 100] [--model FILE.gguf]

The embeddings are all-MiniLM-L6-v2's, by the platform's own engine on loopback. The result goes to
.cache/bench/semantic-cache.json; docs/qwen-semantic-cache.md is written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.semantic_cache.pairs import HELD_OUT, NEAR_MISSES, PARAPHRASES, Pair, installed, pairs, sample
from tests.bench.semantic_cache.rates import Judged, judge, rate
from tools.docs import replaced
from tools.runs import ROOT

RESULT = ROOT / ".cache" / "bench" / "semantic-cache.json"
PAGE = ROOT / "docs" / "qwen-semantic-cache.md"
MODEL = Path(os.environ.get("DEVMENTOR_CACHE") or ROOT / ".cache") / "models" / "all-minilm-l6-v2.gguf"
THRESHOLDS = (0.85, 0.9, 0.95, 0.97, 0.99)
LOOSE, DEFAULT = 0.95, 0.99  # for the second table; QWEN's default
_BATCH = 16


@contextmanager
def engine(model: Path) -> Iterator[str]:
    """The embeddings engine's base URL while it runs. Raises SystemExit where it does not start in a minute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"MODEL": str(model), "ALIAS": "embeddings", "MODE": "embed", "PORT": str(port), "CONTEXT": "512"}
    environment = {**os.environ, **{f"LLAMACPP_{name}": value for name, value in settings.items()}}
    environment["PYTHONPATH"] = str(ROOT / "services" / "src")
    process = subprocess.Popen([sys.executable, "-m", "devmentor.llamacpp"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the embeddings engine does not start with {model}; see its messages above")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def embed(url: str, texts: Sequence[str]) -> dict[str, list[float]]:
    """A vector for each text."""
    found: dict[str, list[float]] = {}
    for first in range(0, len(texts), _BATCH):
        batch = list(texts[first : first + _BATCH])
        body = json.dumps({"model": "embeddings", "input": batch}).encode()
        asked = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            data = json.loads(answer.read())["data"]
        found |= {batch[entry["index"]]: entry["embedding"] for entry in data}
    return found


def measure(url: str, chosen: Sequence[Pair]) -> list[Judged]:
    texts = sorted({text for pair in chosen for text in (pair.one, pair.other)})
    vectors = embed(url, texts)
    return [judge(pair, vectors[pair.one], vectors[pair.other]) for pair in chosen]


def tables(judged: Sequence[Judged]) -> str:
    """Both tables of the page."""
    lines = [
        "| threshold | false hits, by embeddings alone | false hits, with marks | of held-out rules, with marks "
        "| hits among paraphrases, with marks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for threshold in THRESHOLDS:
        rates = [
            rate(judged, threshold, {*NEAR_MISSES, *HELD_OUT}, marks=False),
            rate(judged, threshold, NEAR_MISSES, marks=True),
            rate(judged, threshold, HELD_OUT, marks=True),
            rate(judged, threshold, PARAPHRASES, marks=True),
        ]
        lines.append(f"| {threshold} | " + " | ".join(each.text for each in rates) + " |")
    lines += ["", f"| rule | pairs | served at {LOOSE} | at {LOOSE}, with marks | at {DEFAULT}, with marks |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for kind, rules in (("near miss", NEAR_MISSES), ("held out", HELD_OUT), ("same", PARAPHRASES)):
        for rule in rules:
            cases = ((LOOSE, False), (LOOSE, True), (DEFAULT, True))
            rates = [rate(judged, threshold, [rule], marks=marks) for threshold, marks in cases]
            lines.append(f"| {kind}: {rule} | {rates[0].of} | " + " | ".join(each.text for each in rates) + " |")
    return "\n".join(lines)


def as_json(judged: Sequence[Judged], packages: int) -> dict[str, Any]:
    return {
        "packages": packages,
        "model": "all-MiniLM-L6-v2",
        "pairs": [
            {"rule": e.pair.rule, "same": e.pair.same, "one": e.pair.one, "other": e.pair.other}
            | {"score": round(e.score, 5), "shareable": e.shareable}
            for e in judged
        ],
    }


def from_json(result: dict[str, Any]) -> list[Judged]:
    return [
        Judged(Pair(e["rule"], e["one"], e["other"], e["same"]), e["score"], e["shareable"]) for e in result["pairs"]
    ]


def write(judged: Sequence[Judged]) -> None:
    """The page's tables."""
    PAGE.write_text(replaced(PAGE.read_text(), "bench", tables(judged), PAGE.name))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-semantic-cache", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=int, default=100, help="names that the pairs are made of")
    parser.add_argument("--model", type=Path, default=MODEL, help="the embedding model (make models)")
    parser.add_argument("--only-look", action="store_true", help="print the tables, write nothing")
    parser.add_argument("--tables", action="store_true", help="write the page from the last result, measure nothing")
    options = parser.parse_args(arguments)
    if options.tables:
        write(from_json(json.loads(RESULT.read_text())))
        return 0
    if not options.model.exists():
        parser.error(f"{options.model} is not there: run make models, or name it with --model")
    names = installed()
    chosen = list(pairs(names, sample(names, options.packages)))
    with engine(options.model) as url:
        judged = measure(url, chosen)
    print(tables(judged))
    if not options.only_look:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(as_json(judged, options.packages), indent=1) + "\n")
        write(judged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
