"""verify's rows of all hosts together: what no host can tell alone, and the table. Runs on the control node."""

from __future__ import annotations

import collections.abc as c
from typing import Any

from .checks import COMPONENTS
from .checks_base import FAIL, PASS, Row


def across_hosts(facts: c.Mapping[str, c.Mapping[str, Any]], asked_all: bool) -> list[Row]:
    """What no host can tell alone: exactly one primary, exactly one holder of the virtual address."""
    rows = []
    for fact, value, component, name in (
        ("postgres_role", "primary", "postgres", "one primary"),
        ("vip_holder", True, "gateway", "one holder of VIP"),
    ):
        told = {host: answer[fact] for host, answer in facts.items() if fact in answer}
        if not told or not asked_all:
            continue
        holders = [host for host, answer in told.items() if answer == value]
        result = PASS if len(holders) == 1 else FAIL
        rows.append(Row(component, "(all)", name, result, ", ".join(holders) or "none"))
    return rows


def table(rows: c.Sequence[Row], width: int = 100) -> str:
    """The rows, aligned; evidence is cut at `width` unless the check did not pass."""
    order = {component: index for index, component in enumerate(COMPONENTS)}
    ordered = sorted(rows, key=lambda row: (order.get(row.component, -1), row.host != "(all)", row.host))
    head = Row("COMPONENT", "HOST", "CHECK", "RESULT", "EVIDENCE")
    widths = [
        max(len(getattr(row, field)) for row in [head, *ordered]) for field in ("component", "host", "check", "result")
    ]
    lines = []
    for row in [head, *ordered]:
        cells = (row.component, row.host, row.check, row.result)
        evidence = row.evidence if row.result != PASS else row.evidence[:width]
        padded = "  ".join(text.ljust(size) for text, size in zip(cells, widths, strict=True))
        lines.append(f"{padded}  {evidence}".rstrip())
    return "\n".join(lines)
