"""The page's tables, from the rounds.

python -m tests.chaos.rollout.report      writes docs/rollout-chaos.md between its markers
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.rollout.expect import ANY, EXPECTED
from tests.chaos.rollout.faults import FAULTS
from tools.docs import replaced
from tools.runs import ROOT

PAGE = ROOT / "docs" / "rollout-chaos.md"
RESULT = ROOT / ".cache" / "bench" / "chaos-rollout.json"


def expectations() -> str:
    """What each fault allows, from the table that the checker uses."""
    lines = [
        "| fault | the roll | journal after it | then | journal in the end | failures that it explains | until "
        "| instances that may be missing |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in EXPECTED.items():
        outcomes = "; ".join(
            f"{kind}: {'any' if ANY in found else ', '.join(f'`{outcome}`' for outcome in sorted(found))}"
            for kind, found in each.allowed.items()
        )
        until = f"{each.grace_s:g} s after it {each.until}" if each.allowed else ""
        lines.append(
            f"| `{name}`: {FAULTS[name].text} | {'stops' if each.stops else 'goes through'} | {each.journal} "
            f"| {f'`{each.finish}.yml`' if each.finish else ''} "
            f"| {'finished' if each.finish else each.journal} | {outcomes or 'none'} | {until} "
            f"| {each.fewer} |"
        )
    return "\n".join(lines)


def table(rounds: list[dict[str, Any]], kept: dict[str, str]) -> str:
    """A row for each fault, all its rounds together; of faults without a round the row that is `kept`."""
    lines = [
        "| fault | rounds | rolls | requests | failed | explained | degraded | lost | fewest serving QWEN, PBML "
        "| findings | load | sent late at most, s | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in EXPECTED:
        found = [each for each in rounds if each["fault"] == name]
        if not found:
            lines += [kept[name]] if name in kept else []
            continue
        fewest = ", ".join(
            str(
                min(
                    (each["least_serving"][tier] for each in found if each["least_serving"][tier] is not None),
                    default="?",
                )
            )
            for tier in ("qwen", "pbml")
        )
        lines.append(
            f"| `{name}` | {len(found)} | {sum(each['rolls'] for each in found)} "
            f"| {sum(each['requests'] for each in found)} | {sum(each['failed'] for each in found)} "
            f"| {_counts(found, 'explained')} | {_counts(found, 'degraded')} | {sum(each['lost'] for each in found)} "
            f"| {fewest} | {sum(len(each['problems']) for each in found)} "
            f"| {min(min(each['load']) for each in found):.1f} to {max(max(each['load']) for each in found):.1f} "
            f"| {max(each['behind_s'] for each in found):.2f} | {found[-1]['commit']} |"
        )
    return "\n".join(lines)


def rows(page: str) -> dict[str, str]:
    """Fault -> its row of what was seen, as the page has it: a campaign of some faults leaves the others'."""
    _, _, seen = page.partition("<!-- chaos: begin -->")
    return {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)` \|.*$", seen, re.MULTILINE)}


def _counts(rounds: list[dict[str, Any]], name: str) -> str:
    total: Counter[str] = Counter()
    for each in rounds:
        total.update(each[name])
    return ", ".join(f"{word} {count}" for word, count in sorted(total.items(), key=lambda pair: -pair[1])) or "none"


def written(page: str, rounds: list[dict[str, Any]]) -> str:
    """The page with both tables as they should be. Faults without rounds keep the row that it has."""
    page = replaced(page, "expectations", expectations(), PAGE.name)
    return replaced(page, "chaos", table(rounds, rows(page)), PAGE.name)


def write(result: Path) -> None:
    rounds = json.loads(result.read_text())["rounds"] if result.exists() else []
    PAGE.write_text(written(PAGE.read_text(), rounds))


if __name__ == "__main__":
    write(RESULT)
    sys.exit(0)
