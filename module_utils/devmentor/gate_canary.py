"""Canaries of a health gate: a component does real work, by verify's own checks, and every step must pass."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import functools
import secrets
import urllib.parse
from typing import Any

from .checks import COMPONENTS
from .checks_base import FAIL, PASS, UNKNOWN, Plan, Recorder, Row, Unanswered
from .checks_postgres import check_commit
from .checks_qdrant import check_vector
from .gate_probe import Answer, Tell

# Component -> the name of the port that `base` replaces.
PORTS = {
    "qwen": "qwen",
    "pbml": "pbml",
    "gateway": "gateway",
    "cache": "cache",
    "qdrant": "qdrant_http",
    "pgbouncer": "pgbouncer",
    "embeddings": "llamacpp_embed",
    "prometheus": "prometheus",
    "alertmanager": "alertmanager",
}
# verify asks all hosts together; a gate must know it of one host alone.
BESIDES: dict[str, list[c.Callable[[Plan, Recorder], None]]] = {
    "postgres": [check_commit],
    "qdrant": [check_vector],
}
EVIDENCE_LIMIT = 600
# Of a probe's limit, what verify's own waiting for one slow step may take.
PATIENCE_SHARE = 1 / 3


@dataclasses.dataclass
class Telling(Recorder):
    """A recorder that tells after each row what was found so far."""

    tell: Tell = lambda text: None

    def check(self, name: str, function: c.Callable[[], str]) -> bool:
        passed = super().check(name, function)
        self.tell(summary(self.rows))
        return passed


def summary(rows: c.Sequence[Row]) -> str:
    """The rows that did not pass, or all where all did."""
    shown = [row for row in rows if row.result != PASS] or list(rows)
    marks = [
        f"{row.check}: {row.evidence}" if row.result == PASS else f"{row.check} {row.result}: {row.evidence}"
        for row in shown
    ]
    return "; ".join(marks)[:EVIDENCE_LIMIT]


def judge_rows(rows: c.Sequence[Row]) -> Answer:
    """One result of all steps: fail before unknown before pass; no step at all is unknown."""
    results = {row.result for row in rows}
    if not rows:
        return Answer(UNKNOWN, "no step was taken")
    return Answer(FAIL if FAIL in results else UNKNOWN if results != {PASS} else PASS, summary(rows))


def plan_of_canary(plan: Plan, options: c.Mapping[str, Any], limit: float) -> Plan:
    """The host's plan with `base` in it, a run of its own, and no more patience than the probe has time."""
    changes: dict[str, Any] = {
        "run": secrets.token_hex(6),
        "patience": limit * PATIENCE_SHARE,
        "slowest_scrape": 0.0,
        # Nobody writes this run's row on the primary; the commit below is made from here.
        "replicated_row": False,
    }
    component, base = options["of"], options["base"].rstrip("/")
    if base and component == "engine":
        changes["engine_url"] = base
    elif base:
        parts = urllib.parse.urlsplit(base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        changes |= {"address": parts.hostname, "ports": {**plan.ports, PORTS[component]: port}}
    return dataclasses.replace(plan, **changes)


def run_canary(plan: Plan, options: c.Mapping[str, Any], limit: float, tell: Tell) -> Answer:
    """One canary; a step that cannot even begin is unknown."""
    mine = plan_of_canary(plan, options, limit)
    record = Telling(mine, options["of"], tell=tell)
    for function in functions(options["of"]):
        try:
            function(mine, record)
        except Exception as error:
            record.check("plan", functools.partial(_raise, error))
    return judge_rows(record.rows)


def _raise(error: Exception) -> str:
    raise Unanswered(f"{type(error).__name__}: {error}")


def functions(component: str) -> list[c.Callable[[Plan, Recorder], None]]:
    """verify's checks of a component, and what only a gate asks of it."""
    return [COMPONENTS[component][1], *BESIDES.get(component, [])]
