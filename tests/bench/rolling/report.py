"""The bench's tables and picture, from its result.

python -m tests.bench.rolling.report      writes docs/rolling-bench.md (between its markers) and its .svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tools.docs import replaced
from tools.runs import ROOT

PAGE = ROOT / "docs" / "rolling-bench.md"
PICTURE = PAGE.with_suffix(".svg")
RESULT = ROOT / ".cache" / "bench" / "rolling.json"
NAMES = {
    "check": "the plan alone (`--check`)",
    "update": "rolling update",
    "restart": "rolling restart",
    "plain": "plain restarts, one host after the other",
}
_BARS = 240


def table(result: dict[str, Any]) -> str:
    """An arm's numbers as a whole, then by kind of request."""
    arms = [(NAMES[name], result["arms"][name]) for name in NAMES if name in result["arms"]]
    lines = [
        "| what | duration, s | requests | failed | degraded | slow | acknowledged and lost "
        "| fewest serving QWEN, PBML (usual) | load | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, each in arms:
        kinds = each["during"].values()
        serving = ", ".join(
            f"{each['least_serving'][tier]} ({each['usual_serving'][tier]})" for tier in ("qwen", "pbml")
        )
        lines.append(
            f"| {title} | {each['seconds']:.0f} | {sum(k['requests'] for k in kinds)} "
            f"| {sum(k['failed'] for k in kinds)} | {sum(sum(k['degraded'].values()) for k in kinds)} "
            f"| {sum(k['slow'] or 0 for k in kinds)} | {len(each['lost'])} | {serving} "
            f"| {each['load'][0]:.1f} to {each['load'][1]:.1f} | {each['commit']} |"
        )
    lines += [
        "",
        "| what | requests of | requests | failed | a second | as | degraded | slow | p95, s | to the baseline's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, each in arms:
        lines += [_row(title, kind, found) for kind, found in each["during"].items()]
    rates = ", ".join(f"{kind} {rate:g}" for kind, rate in result["rates"].items())
    behind = max((each["behind_s"] for _, each in arms), default=0.0)
    unknown = sum(each["serving_unknown"] for _, each in arms)
    conditions = (
        f"Requests a second: {rates}. {result['cores']} cores for the lab and its clients; the generator was at most "
        f"{behind:.2f} s late; {unknown} looks at the gateways without an answer."
    )
    return "\n".join([*lines, "", conditions])


def _row(title: str, kind: str, found: dict[str, Any]) -> str:
    ratio = "" if found["p95_ratio"] is None else f"{found['p95_ratio']:.2f}"
    p95 = "" if found["p95_s"] is None else f"{found['p95_s']:.3f}"
    return (
        f"| {title} | {kind} | {found['requests']} | {found['failed']} | {found['failed_per_s']:.3f} "
        f"| {_counts(found['failures'])} | {_counts(found['degraded'])} | {found['slow']} | {p95} | {ratio} |"
    )


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"`{word}` {count}" for word, count in sorted(found.items(), key=lambda pair: -pair[1]))


def bars(timeline: list[dict[str, Any]], width_s: int) -> list[tuple[int, int, int]]:
    """(bar, failed, slow): seconds put together to bars of the picture; those without either are left out."""
    found: dict[int, list[int]] = {}
    for each in timeline:
        counts = found.setdefault(each["second"] // width_s, [0, 0])
        counts[0] += sum(each["failed"].values())
        counts[1] += each["slow"]
    return [(bar, failed, slow) for bar, (failed, slow) in sorted(found.items()) if failed or slow]


def picture(result: dict[str, Any]) -> str:
    """An SVG: for each arm, over its time, how many requests failed (red) and were slow (yellow)."""
    arms = [(NAMES[name], result["arms"][name]) for name in NAMES if name in result["arms"]]
    longest = max((row["second"] for _, each in arms for row in each["timeline"]), default=1) + 1
    width_s = -(-longest // _BARS)
    parts_of = [(title, each, bars(each["timeline"], width_s)) for title, each in arms]
    most = max((failed + slow for _, _, found in parts_of for _, failed, slow in found), default=1)
    left, width, panel, gap = 40, 820, 110, 44
    step = width / -(-longest // width_s)
    height = (panel + gap) * len(arms) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{left + width + 20}" height="{height}" fill="white"/>',
    ]
    for number, (title, each, found) in enumerate(parts_of):
        base = number * (panel + gap) + panel + 30
        end = left + each["seconds"] / width_s * step
        parts.append(f'<text x="{left}" y="{base - panel - 8}">{title}: failed (red) and slow (yellow) requests</text>')
        parts.append(f'<line x1="{left}" y1="{base}" x2="{left + width}" y2="{base}" stroke="#888"/>')
        parts.append(f'<line x1="{end:.1f}" y1="{base - panel}" x2="{end:.1f}" y2="{base}" stroke="#bbb"/>')
        parts.append(f'<text x="{end:.1f}" y="{base + 15}" text-anchor="middle">{each["seconds"]:.0f} s</text>')
        parts.append(f'<text x="{left - 5}" y="{base - panel + 10}" text-anchor="end">{most}</text>')
        for bar, failed, slow in found:
            x, y = left + bar * step, base
            for count, colour in ((failed, "#c40"), (slow, "#db3")):
                if count:
                    tall = count / most * panel
                    y -= tall
                    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(1.0, step):.1f}" height="{tall:.1f}"'
                    parts.append(f'<rect {place} fill="{colour}"/>')
    return "\n".join([*parts, "</svg>", ""])


def write(result: Path) -> None:
    """The page's tables and the picture beside it. Raises FileNotFoundError where nothing was measured."""
    found = json.loads(result.read_text())
    PAGE.write_text(replaced(PAGE.read_text(), "bench", table(found), PAGE.name))
    PICTURE.write_text(picture(found))


if __name__ == "__main__":
    write(RESULT)
    sys.exit(0)
