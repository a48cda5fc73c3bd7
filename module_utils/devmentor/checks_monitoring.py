"""verify's checks of monitoring: exporters, Prometheus and Alertmanager."""

from __future__ import annotations

import re
from typing import Any

from .checks_base import Failed, Plan, Recorder, poll
from .checks_client import ask

# Port name -> (group that has it, a line of its metrics that shows that it reaches what it measures).
EXPORTERS: dict[str, tuple[str, str]] = {
    "node_exporter": ("all", r"^node_load1 "),
    "process_exporter": ("all", r"^namedprocess_"),
    "postgres_exporter": ("postgres", r"^pg_up 1$"),
    "pgbouncer_exporter": ("pgbouncer", r"^pgbouncer_up 1$"),
    "redis_exporter": ("cache", r"^redis_up 1$"),
    "blackbox_exporter": ("monitoring", r"^blackbox_exporter_"),
}


def check_exporters(plan: Plan, record: Recorder) -> None:
    def measured(port: int, pattern: str) -> str:
        text = ask(plan, "GET", f"https://{plan.address}:{port}/metrics").body.decode(errors="replace")
        if not re.search(pattern, text, re.MULTILINE):
            raise Failed(f"answers, but no line matches {pattern}: it does not reach what it measures")
        return f"{sum(1 for line in text.splitlines() if line and not line.startswith('#'))} samples"

    for name, (group, pattern) in EXPORTERS.items():
        if group == "all" or group in plan.groups:
            record.check(name, lambda port=plan.ports[name], want=pattern: measured(port, want))  # type: ignore[misc]


def judge_targets(targets: list[dict[str, Any]]) -> str:
    if not targets:
        raise Failed("there are no targets")
    bad = [
        f"{t['labels'].get('job')} {t['labels'].get('instance')} {t['health']}" for t in targets if t["health"] != "up"
    ]
    if bad:
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        raise Failed(f"{len(bad)} of {len(targets)} not up: {', '.join(bad[:4])}{more}")
    return f"{len(targets)} targets up"


def judge_rules(groups: list[dict[str, Any]]) -> str:
    rules = [rule for group in groups for rule in group["rules"]]
    if not rules:
        raise Failed("no rules are loaded")
    bad = [rule["name"] for rule in rules if rule["health"] == "err"]
    if bad:
        raise Failed(f"rules with errors: {', '.join(bad)}")
    return f"{len(rules)} rules in {len(groups)} groups"


def check_prometheus(plan: Plan, record: Recorder) -> None:
    base = f"https://{plan.address}:{plan.ports['prometheus']}/api/v1"

    def targets() -> str:
        return judge_targets(ask(plan, "GET", f"{base}/targets?state=active").json()["data"]["activeTargets"])

    def rules() -> str:
        return judge_rules(ask(plan, "GET", f"{base}/rules").json()["data"]["groups"])

    # A target that was added a moment ago is only up after its first scrape.
    record.check("targets", lambda: poll(targets, plan.patience + plan.slowest_scrape, 3))
    record.check("rules", rules)


def check_alertmanager(plan: Plan, record: Recorder) -> None:
    def mesh() -> str:
        url = f"https://{plan.address}:{plan.ports['alertmanager']}/api/v2/status"
        cluster = ask(plan, "GET", url).json()["cluster"]
        wanted = len(plan.peers["monitoring"])
        evidence = f"{len(cluster.get('peers', []))} of {wanted} peers, {cluster['status']}"
        if wanted > 1 and (len(cluster.get("peers", [])) != wanted or cluster["status"] != "ready"):
            raise Failed(evidence)
        return evidence

    record.check("mesh", lambda: poll(mesh, 15))
