"""Verdicts of several hosts as one report. The lines are made in module_utils/devmentor_ha/report.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Filters run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from module_utils.devmentor_ha.report import seen_from
from module_utils.devmentor_ha.verdict import UNKNOWN


def pg_report(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`answers`: host -> result of pg_cluster_info there. The state and the lines of the host that sees most; a host
    whose module failed is a line."""
    verdicts = {host: answer for host, answer in answers.items() if "reasons" in answer}
    failed = [f"! {host}: {answers[host].get('msg', 'no result')}" for host in sorted(set(answers) - set(verdicts))]
    if not verdicts:
        return {"host": "nowhere", "state": UNKNOWN, "lines": ["unknown: no host gave a verdict", *failed]}
    host, lines = seen_from(verdicts)
    return {"host": host, "state": verdicts[host]["state"], "lines": [*lines, *failed]}


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"pg_report": pg_report}
