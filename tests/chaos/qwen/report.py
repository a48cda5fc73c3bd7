"""The page's tables, from the rounds.

python -m tests.chaos.qwen.report      writes docs/qwen-chaos.md between its markers
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.qwen.expect import BEGAN, EXPECTED
from tools.docs import replaced
from tools.runs import ROOT

PAGE = ROOT / "docs" / "qwen-chaos.md"
RESULT = ROOT / ".cache" / "bench" / "chaos-qwen.json"


def _counts(rounds: list[dict[str, Any]], name: str) -> str:
    total: Counter[str] = Counter()
    for each in rounds:
        total.update(each[name])
    return ", ".join(f"{word} {count}" for word, count in sorted(total.items(), key=lambda pair: -pair[1])) or "none"


def _most(rounds: list[dict[str, Any]], name: str) -> str:
    """The worst of all rounds; a round in which it was not seen is the worst of all."""
    values = [each[name] for each in rounds]
    return "never" if None in values else f"{max(values):.1f}"


def table(rounds: list[dict[str, Any]]) -> str:
    """A row for each fault, all its rounds together."""
    lines = [
        "| fault | rounds | requests | ok | served by | errors | without context | worst gap, s | recovered after, s "
        "| findings |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in [name for name in EXPECTED if any(each["fault"] == name for each in rounds)]:
        found = [each for each in rounds if each["fault"] == name]
        lines.append(
            f"| `{name}`: {found[0]['text']} | {len(found)} | {sum(each['requests'] for each in found)} "
            f"| {sum(each['ok'] for each in found)} | {_counts(found, 'served_by')} | {_counts(found, 'errors')} "
            f"| {sum(each['degraded_context'] for each in found)} | {_most(found, 'worst_gap_s')} "
            f"| {_most(found, 'recovery_s')} | {sum(len(each['problems']) for each in found)} |"
        )
    last = rounds[-1]
    loads = [load for each in rounds for load in each["load"]]
    conditions = (
        f"{last['rate']:g} requests a second, commit {last['commit']}, load of the machine {min(loads):.1f} to "
        f"{max(loads):.1f}, requests sent at most {max(each['behind_s'] for each in rounds):.2f} s late."
    )
    return "\n".join([*lines, "", conditions])


def expectations() -> str:
    """What each fault allows, from the table that the checker uses."""
    lines = [
        "| fault | errors that a client may see | begun until | served by, beside what serves always "
        "| PBML's part may be missing | recovered within, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    normal = EXPECTED["none"].served_by
    for name, each in EXPECTED.items():
        errors = ", ".join(f"`{error}`" for error in each.errors) or "none"
        since = "the fault" if each.since == BEGAN else "its undoing"
        until = f"{each.error_s:g} s after {since}" if each.errors else ""
        more = ", ".join(f"`{by}`" for by in sorted(each.served_by - normal)) or ""
        missing = "yes" if each.degraded_context else ""
        lines.append(f"| `{name}` | {errors} | {until} | {more} | {missing} | {each.recover_s:g} |")
    return "\n".join(lines)


def written(page: str, rounds: list[dict[str, Any]]) -> str:
    """The page with both tables as they should be."""
    page = replaced(page, "expectations", expectations(), PAGE.name)
    return replaced(page, "chaos", table(rounds) if rounds else "Not measured yet.", PAGE.name)


def write(result: Path) -> None:
    rounds = json.loads(result.read_text())["rounds"] if result.exists() else []
    PAGE.write_text(written(PAGE.read_text(), rounds))


if __name__ == "__main__":
    write(RESULT)
    sys.exit(0)
