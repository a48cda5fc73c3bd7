"""The bench's table and picture, from its result.

python -m tests.bench.qwen.report      writes docs/qwen-bench.md (between its markers) and its .svg
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from tools.docs import replaced
from tools.runs import ROOT

PAGE = ROOT / "docs" / "qwen-bench.md"
PICTURE = PAGE.with_suffix(".svg")
NAMES = {"floor": "the pretended upstream alone (floor)", "qwen": "QWEN", "litellm": "LiteLLM"}
_COLOURS = {"floor": "#888", "qwen": "#0b6", "litellm": "#c40"}


def table(result: dict[str, Any]) -> str:
    """A row for each system. Added latency is the difference of the percentiles, not a percentile of differences."""
    systems = result["systems"]
    lines = [
        "| system | p50, ms | p99, ms | added p50, ms | added p99, ms | first token added p50, ms | p99, ms "
        "| cached hit p99, ms | requests per core second | memory, MiB (first to last) | failed "
        "| generator behind, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in NAMES.items():
        if name not in systems:
            continue
        found = systems[name]
        fresh, cached, memory = found["fresh"], found["cached"], found["memory_mib"]
        added = [
            f"{found[kind][p] - systems['floor'][kind][p]:.2f}" if name != "floor" else ""
            for kind in ("fresh", "first_token")
            for p in ("p50_ms", "p99_ms")
        ]
        hit = f"{cached['p99_ms']:.2f}" if name != "floor" else ""
        kinds = [fresh, found["first_token"], cached]
        behind = max(kind["generator_behind_ms"] for kind in kinds)
        lines.append(
            f"| {title} | {fresh['p50_ms']:.2f} | {fresh['p99_ms']:.2f} | {' | '.join(added)} "
            f"| {hit} | {found['saturated']['per_core_second']:.0f} "
            f"| {memory[0]:.0f} to {memory[-1]:.0f} | {sum(kind['failed'] for kind in kinds)} | {behind:.1f} |"
        )
    conditions = (
        f"{result['rate']:g} requests a second, {result['seconds']:g} s a kind of load, {result['cores']} cores, "
        f"load {result['load_before']:.1f} before, commit {result['commit']}."
    )
    return "\n".join([*lines, "", conditions])


def picture(result: dict[str, Any]) -> str:
    """An SVG: a bar for each system's p50 and p99, on a logarithmic scale of milliseconds."""
    rows = [
        (f"{NAMES[name]}, {label}", found["fresh"][p], _COLOURS[name])
        for name, found in result["systems"].items()
        for p, label in (("p50_ms", "p50"), ("p99_ms", "p99"))
    ]
    low, high = 0.1, max(10.0, *(value for _, value, _ in rows))
    left, width, row = 290, 460, 26
    scale = width / math.log10(high / low * 1.2)
    height = row * len(rows) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{left + width + 70}" height="{height}" fill="white"/>',
    ]
    tick = low
    while tick <= high:
        x = left + math.log10(tick / low) * scale
        parts.append(f'<line x1="{x:.1f}" y1="10" x2="{x:.1f}" y2="{height - 30}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle">{tick:g} ms</text>')
        tick *= 10
    for number, (title, value, colour) in enumerate(rows):
        y, length = 14 + number * row, max(1.0, math.log10(max(value, low) / low) * scale)
        parts.append(f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{title}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="16" fill="{colour}"/>')
        parts.append(f'<text x="{left + length + 5:.1f}" y="{y + 13}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def write(result: Path) -> None:
    """The page's table and the picture beside it. Raises FileNotFoundError where nothing was measured."""
    found = json.loads(result.read_text())
    PAGE.write_text(replaced(PAGE.read_text(), "bench", table(found), PAGE.name))
    PICTURE.write_text(picture(found))


if __name__ == "__main__":
    write(ROOT / ".cache" / "bench" / "qwen.json")
    sys.exit(0)
