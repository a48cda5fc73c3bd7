"""The bench's tables and picture, from its result.

python -m tests.bench.pbml.report      writes docs/pbml-bench.md (between its markers) and its .svg
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.docs import replaced
from tools.runs import ROOT

PAGE = ROOT / "docs" / "pbml-bench.md"
PICTURE = PAGE.with_suffix(".svg")
NAMES = {"pbml": "PBML", "mem0": "mem0", "floor": "bare calls (floor)"}
KINDS = {"short": "paragraphs", "import": "paragraphs, {together} a request", "page": "pages"}
_COLOURS = {"pbml": "#0b6", "floor": "#888"}

Bar = tuple[str, float, float, bool]
"""what, measured, the bar, whether it is held"""


def tables(result: dict[str, Any]) -> str:
    """All of the page that is measured."""
    parts = [bars_table(result)]
    if "ingest" in result:
        parts += [ingest_table(result["ingest"]), steady_line(result["ingest"]["steady"])]
    if "ingest_pretended" in result:
        without = result["ingest_pretended"]
        parts += ["With an engine that computes nothing:", ingest_table(without), steady_line(without["steady"])]
    if "fetch" in result:
        parts += [fetch_table(result["fetch"]), load_table(result["fetch"])]
        if result["fetch"]["conversation"]:
            parts.append(conversation_table(result["fetch"]["conversation"]))
    return "\n\n".join([*parts, conditions(result)])


def median(rounds: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(each[name] for each in rounds)


def bars(result: dict[str, Any]) -> list[Bar]:
    """What issue 4 asks for, as far as this run measured it."""
    found: list[Bar] = []
    ingests = [(kind, each, "") for kind, each in result.get("ingest", {}).get("kinds", {}).items()]
    without = result.get("ingest_pretended", {}).get("kinds", {})
    ingests += [(kind, each, ", engine pretended") for kind, each in without.items()]
    for kind, each, engine in ingests:
        systems = each["systems"]
        if not {"pbml", "mem0"} <= set(systems):
            continue
        for name, least in (("acknowledged_per_s", 5.0), ("searchable_per_s", 2.0)):
            ratio = median(systems["pbml"], name) / median(systems["mem0"], name)
            what = f"{called(kind, each)}: {name.split('_')[0]} documents/s, times mem0's{engine}"
            found.append((what, ratio, least, ratio >= least))
    sizes = result.get("fetch", {}).get("sizes", {})
    for size, each in sizes.items():
        ratio = each["pbml"]["p95_ms"] / each["floor"]["p95_ms"]
        found.append((f"fetch p95 at {power(int(size))} chunks, times the floor's", ratio, 3.0, ratio <= 3.0))
        mean = each["recall"]["mean"]
        found.append((f"recall@{each['recall']['at']} at {power(int(size))} chunks", mean, 0.98, mean >= 0.98))
    if "10000" in sizes and (largest := max(sizes, key=int)) != "10000":
        ratio = sizes[largest]["pbml"]["p95_ms"] / sizes["10000"]["pbml"]["p95_ms"]
        found.append((f"fetch p95 at {power(int(largest))} chunks, times that at 10^4", ratio, 2.0, ratio <= 2.0))
    talk = result.get("fetch", {}).get("conversation")
    if talk and len(talk["fetches"]) > 1:
        ratio = talk["fetches"][-1]["p95_ms"] / talk["fetches"][0]["p95_ms"]
        tokens = power(talk["tokens"][-1]), power(talk["tokens"][0])
        found.append((f"fetch p95 in {tokens[0]} tokens, times that in {tokens[1]}", ratio, 1.5, ratio <= 1.5))
    return found


def called(kind: str, figures: dict[str, Any]) -> str:
    return KINDS[kind].format(together=figures.get("together", 1))


def bars_table(result: dict[str, Any]) -> str:
    lines = ["| what | measured | bar | held |", "| --- | --- | --- | --- |"]
    for what, measured, bar, held in bars(result):
        sign = "at least" if "documents/s" in what or "recall" in what else "at most"
        digits = 4 if "recall" in what else 2
        lines.append(f"| {what} | {measured:.{digits}f} | {sign} {bar:g} | {'yes' if held else '**no**'} |")
    return "\n".join(lines)


def ingest_table(ingest: dict[str, Any]) -> str:
    lines = [
        "| texts | system | acknowledged documents/s | searchable documents/s | acknowledgement p95, ms "
        "| texts a call of the engine | processor, ms a document: engine, Qdrant, its own | documents a round "
        "| failed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, each in ingest["kinds"].items():
        what = f"{called(kind, each)} ({each['chars_each']:.0f} characters, {each['chunks_each']:.1f} chunks each)"
        for name, rounds in each["systems"].items():
            calls = f"{median(rounds, 'texts_a_call'):.1f}" if "texts_a_call" in rounds[0] else ""
            cpu = ", ".join(
                f"{statistics.median(done['cpu_ms'][part] for done in rounds):.1f}"
                for part in ("engine", "qdrant", "own")
            )
            lines.append(
                f"| {what} | {NAMES[name]} | {median(rounds, 'acknowledged_per_s'):.1f} "
                f"| {median(rounds, 'searchable_per_s'):.1f} | {median(rounds, 'acknowledged_p95_ms'):.0f} "
                f"| {calls} | {cpu} | {rounds[0]['documents']} | {sum(done['failed'] for done in rounds)} |"
            )
    return "\n".join(lines)


def steady_line(steady: dict[str, Any]) -> str:
    return (
        f"At {steady['rate']:g} paragraphs a second (open loop): acknowledged p50 {steady['p50_ms']:.1f}, "
        f"p95 {steady['p95_ms']:.1f}, p99 {steady['p99_ms']:.1f} ms; searchable after p50 "
        f"{steady['searchable_p50_ms']:.0f}, p95 {steady['searchable_p95_ms']:.0f} ms; {steady['right']} right, "
        f"{steady['failed']} failed; generator behind {steady['generator_behind_ms']:.1f} ms."
    )


def fetch_table(fetch: dict[str, Any]) -> str:
    lines = [
        "| chunks | real embeddings | system | p50, ms | p95, ms | p99, ms | p95, times the floor's | recall@10 "
        "| right, failed | generator behind, ms | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, each in fetch["sizes"].items():
        for name in ("pbml", "floor"):
            found = each[name]
            ratio = f"{found['p95_ms'] / each['floor']['p95_ms']:.2f}" if name == "pbml" else ""
            recall = f"{each['recall']['mean']:.4f}" if name == "pbml" else ""
            lines.append(
                f"| {power(int(size))} | {each['real_share']:.0%} | {NAMES[name]} | {found['p50_ms']:.1f} "
                f"| {found['p95_ms']:.1f} | {found['p99_ms']:.1f} | {ratio} | {recall} "
                f"| {found['right']}, {found['failed']} | {found['generator_behind_ms']:.1f} "
                f"| {each['load_average']:.1f} |"
            )
    return "\n".join(lines)


def load_table(fetch: dict[str, Any]) -> str:
    lines = [
        "| chunks | rows by COPY, s | index on words, s | `rebuild`, points/s | points written "
        "| Qdrant optimises after, s | vectors in HNSW |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, each in fetch["sizes"].items():
        load, qdrant = each["load"], each["qdrant"]
        lines.append(
            f"| {power(int(size))} | {load['copy_s']:.1f} | {load['words_index_s']:.1f} | {load['rebuild_per_s']:.0f} "
            f"| {load['rebuilt']} | {qdrant['seconds']:.0f} | {qdrant['indexed']} of {qdrant['points']} |"
        )
    compared = fetch["reconciled"]
    lines += [
        "",
        f"The product's reconciler then compared {compared['ledger compared']} chunks with their points and "
        f"{compared['index compared']} points with their versions: {compared['missing']} were missing, "
        f"{compared['orphans']} too many.",
    ]
    return "\n".join(lines)


def conversation_table(talk: dict[str, Any]) -> str:
    lines = [
        "| conversation, tokens | turns | p50, ms | p95, ms | p99, ms | right, failed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for tokens, turns, found in zip(talk["tokens"], talk["turns"], talk["fetches"], strict=True):
        lines.append(
            f"| {power(tokens)} | {turns} | {found['p50_ms']:.1f} | {found['p95_ms']:.1f} | {found['p99_ms']:.1f} "
            f"| {found['right']}, {found['failed']} |"
        )
    return "\n".join(lines)


def conditions(result: dict[str, Any]) -> str:
    machine, versions, settings = result["machine"], result["versions"], result["settings"]
    postgres = versions["postgres"]
    ingest = result.get("ingest") or result.get("ingest_pretended")
    quorum = ""
    if ingest:
        quorum = (
            " Without a standby that takes WAL nothing was acknowledged."
            if ingest["quorum_waits"]
            else (" **A write was acknowledged without a standby.**")
        )
    names = postgres["synchronous_standby_names"]
    return (
        f"{machine['cores']} cores, {machine['memory_gib']:.0f} GiB, load {machine['load_before']:.1f} before, "
        f"commit {result['commit']}, {result['seconds']:.0f} s in all, seed {settings['seed']}. "
        f"PostgreSQL {postgres['server_version'].split()[0]}, {versions['standbys']} standbys, "
        f"synchronous_standby_names `{names}`, fsync {postgres['fsync']}; Qdrant {versions['qdrant']}, one peer; "
        f"mem0 {versions['mem0']}; ingest by {settings['concurrency']} clients, {settings['rounds']} rounds; fetches "
        f"at {settings['rate']:g} a second, {settings['seconds']:g} s each, {settings['fetch_rounds']} rounds.{quorum}"
    )


def power(number: int) -> str:
    exponent = round(math.log10(number))
    return f"10^{exponent}" if number == 10**exponent else str(number)


def picture(result: dict[str, Any]) -> str:
    """An SVG: p50, p95 and p99 of fetches by size, both axes logarithmic."""
    sizes = result["fetch"]["sizes"]
    lines = {
        (name, p): [(int(size), each[name][p]) for size, each in sizes.items()]
        for name in ("pbml", "floor")
        for p in ("p50_ms", "p95_ms", "p99_ms")
    }
    values = [value for points in lines.values() for _, value in points if math.isfinite(value)]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.01))
    first, last = min(map(int, sizes)), max(max(map(int, sizes)), 10 * min(map(int, sizes)))
    left, top, width, height = 70, 20, 520, 320
    x = lambda size: left + width * math.log10(size / first) / math.log10(last / first)  # noqa: E731
    y = lambda value: top + height * (1 - math.log10(value / low) / math.log10(high / low))  # noqa: E731
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 150} {top + height + 50}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{left + width + 150}" height="{top + height + 50}" fill="white"/>',
    ]
    tick = low
    while tick <= high:
        parts.append(f'<line x1="{left}" y1="{y(tick):.1f}" x2="{left + width}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g} ms</text>')
        tick *= 10
    for size in map(int, sizes):
        parts.append(f'<text x="{x(size):.1f}" y="{top + height + 20}" text-anchor="middle">{power(size)}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 42}" text-anchor="middle">chunks</text>')
    dashes = {"p50_ms": "", "p95_ms": "6 3", "p99_ms": "2 3"}
    for (name, p), points in lines.items():
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points if math.isfinite(value))
        style = f'stroke="{_COLOURS[name]}" stroke-width="2" stroke-dasharray="{dashes[p]}" fill="none"'
        parts.append(f'<polyline points="{path}" {style}/>')
    for number, (name, p) in enumerate(lines):
        at, label = top + 10 + 20 * number, f"{NAMES[name].split(' (')[0]}, {p[:3]}"
        style = f'stroke="{_COLOURS[name]}" stroke-width="2" stroke-dasharray="{dashes[p]}"'
        parts.append(f'<line x1="{left + width + 10}" y1="{at}" x2="{left + width + 40}" y2="{at}" {style}/>')
        parts.append(f'<text x="{left + width + 46}" y="{at + 4}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def verdict(result: dict[str, Any], *, speed: bool = True) -> int:
    """The exit status: 1 where a bar is missed (`speed`), anything failed, or the ledger and the index differed."""
    wrong = [what for what, _, _, held in bars(result) if not held and (speed or "recall" in what)]
    fetch = result.get("fetch")
    for ingest in (result[name] for name in ("ingest", "ingest_pretended") if name in result):
        wrong += ["writes do not wait for the quorum"] * (not ingest["quorum_waits"])
        systems = [each["systems"] for each in ingest["kinds"].values()]
        rounds = [done for each in systems for name in ("pbml", "floor") for done in each.get(name, [])]
        wrong += ["documents failed"] * (any(done["failed"] for done in rounds) or ingest["steady"]["failed"] > 0)
    if fetch:
        every = [*(size["pbml"] for size in fetch["sizes"].values()), *(fetch["conversation"] or {}).get("fetches", [])]
        wrong += ["fetches failed"] * any(found["failed"] for found in every)
        wrong += ["ledger and index differed"] * bool(fetch["reconciled"]["missing"] + fetch["reconciled"]["orphans"])
        wrong += ["a worker had to mend the index"] * any(size["mended"] for size in fetch["sizes"].values())
    for each in wrong:
        print(f"not held: {each}")
    return 1 if wrong else 0


def write(result: Path) -> None:
    """The page's tables and the picture beside it. Raises FileNotFoundError where nothing was measured."""
    found = json.loads(result.read_text())
    PAGE.write_text(replaced(PAGE.read_text(), "bench", tables(found), PAGE.name))
    if "fetch" in found:
        PICTURE.write_text(picture(found))


if __name__ == "__main__":
    write(ROOT / ".cache" / "bench" / "pbml.json")
    sys.exit(0)
