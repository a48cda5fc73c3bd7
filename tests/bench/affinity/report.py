"""The bench's table, from its result.

python -m tests.bench.affinity.report      writes docs/qwen-affinity.md between its markers
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench.affinity.conversations import ARMS, BODY, HEADER
from tests.bench.qwen.load import percentile
from tools.docs import replaced
from tools.runs import ROOT

PAGE = ROOT / "docs" / "qwen-affinity.md"
RESULT = ROOT / ".cache" / "bench" / "affinity.json"
NAMES = {HEADER: "one instance each (consistent hash, bounded load)", BODY: "round robin"}


def turns_of(result: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    return [turn for part in result["parts"] if part["arm"] == arm for turn in part["turns"]]


def moves(turns: list[dict[str, Any]]) -> tuple[float, float]:
    """Of the conversations: instances per conversation, and the share of later turns on another one than the one
    before."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for turn in sorted(turns, key=lambda turn: turn["number"]):
        by_name[turn["conversation"]].append(turn["instance"])
    later = [(a, b) for seen in by_name.values() for a, b in itertools.pairwise(seen)]
    moved = sum(a != b for a, b in later) / len(later) if later else 0.0
    return sum(len(set(seen)) for seen in by_name.values()) / max(len(by_name), 1), moved


def row(result: dict[str, Any], arm: str) -> dict[str, Any]:
    """An arm's figures. Times and tokens are of turns after the first: that one has no prefix to find again."""
    turns = turns_of(result, arm)
    right = [turn for turn in turns if not turn["error"]]
    later = [turn for turn in right if turn["number"] > 1]
    ttft = [turn["ttft_s"] for turn in later if turn["ttft_s"] is not None]
    told = [turn for turn in later if turn["prompt"] is not None and turn["evaluated"] is not None]
    prompt = sum(turn["prompt"] for turn in told)
    instances, moved = moves(right)
    counted = [part["counted"] for part in result["parts"] if part["arm"] == arm]
    return {
        "turns": len(later), "failed": len(turns) - len(right), "untold": len(later) - len(told),
        "p50_ms": percentile(ttft, 0.5) * 1000, "p95_ms": percentile(ttft, 0.95) * 1000,
        "prompt": prompt, "evaluated": sum(turn["evaluated"] for turn in told),
        "share": sum(turn["evaluated"] for turn in told) / prompt if prompt else float("nan"),
        "instances": instances, "moved": moved, "counted": None if None in counted else sum(counted),
    }  # fmt: skip


def problems(result: dict[str, Any]) -> list[str]:
    """Why the figures are worth nothing; empty where they are worth something."""
    found = []
    rows = {arm: row(result, arm) for arm in ARMS}
    for arm, each in rows.items():
        found += [f"{arm}: {each['failed']} turns failed"] if each["failed"] else []
        found += [f"{arm}: no turn after a first one"] if not each["turns"] else []
        found += [f"{arm}: of {each['untold']} turns the engine did not say its tokens"] if each["untold"] else []
    if result["instances"] > 1 and rows[BODY]["turns"] and not rows[BODY]["moved"]:
        found.append("body: no conversation moved, so this was no round robin")
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        "| conversations | turns | time to first token p50, ms | p95, ms | prompt tokens | evaluated | share "
        "| by the engines' counters | instances of a conversation | turns on another instance | failed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm in ARMS:
        each = row(result, arm)
        counted = "not known" if each["counted"] is None else f"{each['counted']:.0f}"
        lines.append(
            f"| {NAMES[arm]} | {each['turns']} | {each['p50_ms']:.0f} | {each['p95_ms']:.0f} | {each['prompt']} "
            f"| {each['evaluated']} | {each['share']:.1%} | {counted} | {each['instances']:.2f} | {each['moved']:.0%} "
            f"| {each['failed']} |"
        )
    loads = [part["load"] for part in result["parts"]]
    conditions = (
        f"{result['rounds']} rounds of {result['conversations']} conversations at once in each arm, {result['turns']} "
        f"turns of {result['words']} words, {result['instances']} instances, {result['cores']} cores for everything, "
        f"load {min(loads):.1f} to {max(loads):.1f} before, commit {result['commit']}."
    )
    found = problems(result)
    warning = ["", "Not to be used: " + "; ".join(found) + "."] if found else []
    return "\n".join([*lines, "", conditions, *warning])


def write(result: Path) -> None:
    """The page's table. Raises FileNotFoundError where nothing was measured."""
    PAGE.write_text(replaced(PAGE.read_text(), "bench", table(json.loads(result.read_text())), PAGE.name))


if __name__ == "__main__":
    write(RESULT)
    sys.exit(0)
