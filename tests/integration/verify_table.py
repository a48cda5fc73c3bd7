"""Reads verify's printed table back, as an operator sees it."""

from __future__ import annotations

import re
from typing import NamedTuple

RESULTS = ("pass", "fail", "unknown")


class Row(NamedTuple):
    component: str
    host: str
    check: str
    result: str
    evidence: str


def rows(output: str) -> list[Row]:
    """The table's rows in the output of playbooks/verify.yml."""
    found = []
    for line in output.splitlines():
        cells = re.split(r"\s{2,}", line.rstrip(), maxsplit=4)
        if len(cells) >= 4 and cells[3] in RESULTS:
            found.append(Row(*[*cells, ""][:5]))
    return found
