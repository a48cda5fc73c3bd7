"""The bench's table and picture, from its rounds.

    python -m tests.bench.failover.report      writes docs/postgres-ha-bench.md (between its markers) and its .svg
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tools.docs import replaced
from tools.runs import ROOT

PAGE = ROOT / "docs" / "postgres-ha-bench.md"
PICTURE = PAGE.with_suffix(".svg")
KINDS = {
    "power_cut": "primary's host loses power",
    "switchover": "planned switchover",
    "floor": "poolers alone (floor)",
}
NAMES = {
    "devmentor": "this platform",
    "patroni-default": "Patroni, defaults",
    "patroni-tight": "Patroni, ttl 20, loop 5",
}
Entry = dict[str, Any]


def grouped(entries: Iterable[Entry]) -> list[tuple[str, str, list[Entry]]]:
    """(kind, system, its rounds), in the order of KINDS and NAMES; those of the last commit of each system alone."""
    found = list(entries)
    last = {entry["system"]: entry["commit"] for entry in found}
    groups = []
    for kind in KINDS:
        for system in NAMES:
            mine = [e for e in found if (e["fault"], e["system"], e["commit"]) == (kind, system, last.get(system))]
            if mine:
                groups.append((kind, system, mine))
    return groups


def spread(values: Sequence[float], digits: int = 2) -> str:
    """min / median / max."""
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


def table(entries: Iterable[Entry]) -> str:
    lines = [
        "| what | system | rounds | stall, s (min / median / max) | failed statements (median, max) "
        "| acknowledged | lost | whole again, s (median) | load | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, system, found in grouped(entries):
        failed = [sum(entry["failed"].values()) for entry in found]
        rejoins = [entry["rejoin_s"] for entry in found if entry["rejoin_s"] is not None]
        loads = [entry["load"] for entry in found]
        lines.append(
            f"| {KINDS[kind]} | {NAMES[system]} | {len(found)} | {spread([e['stall_s'] for e in found])} "
            f"| {statistics.median(failed):g}, {max(failed)} | {sum(e['acknowledged'] for e in found)} "
            f"| {sum(e['lost'] for e in found)} | {f'{statistics.median(rejoins):.1f}' if rejoins else 'never'} "
            f"| {min(loads):.1f} to {max(loads):.1f} | {found[-1]['commit']} |"
        )
    return "\n".join(lines)


def picture(entries: Iterable[Entry]) -> str:
    """An SVG: a dot for each round's stall, a line for each system and kind."""
    groups = grouped(entries)
    furthest = max((entry["stall_s"] for _, _, found in groups for entry in found), default=1.0)
    left, width, row = 330, 520, 26
    scale = width / (furthest * 1.05)
    height = row * len(groups) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{left + width + 20}" height="{height}" fill="white"/>',
    ]
    step = next(each for each in (1, 2, 5, 10, 20, 50, 100) if furthest / each <= 10)
    for tick in range(0, int(furthest) + 1, step):
        x = left + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="10" x2="{x:.1f}" y2="{height - 40}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 22}" text-anchor="middle">{tick}</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{height - 5}" text-anchor="middle">seconds without an acknowledgement</text>'
    )
    for number, (kind, system, found) in enumerate(groups):
        y = 24 + number * row
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{KINDS[kind]}: {NAMES[system]}</text>')
        colour = "#0b6" if system == "devmentor" else "#c40"
        parts += [
            f'<circle cx="{left + e["stall_s"] * scale:.1f}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.6"/>'
            for e in found
        ]
    return "\n".join([*parts, "</svg>", ""])


def write(results: Path) -> None:
    """The page's table and the picture beside it. Raises FileNotFoundError where nothing was measured."""
    entries = [json.loads(each) for each in results.read_text().splitlines()]
    PAGE.write_text(replaced(PAGE.read_text(), "bench", table(entries), PAGE.name))
    PICTURE.write_text(picture(entries))
    print(table(entries))


if __name__ == "__main__":
    write(ROOT / ".cache" / "bench" / "failover-bench.jsonl")
    sys.exit(0)
