"""From a check as written to the probe that asks it."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import socket
from typing import Any

from .checks_base import Plan, Recorder
from .gate_canary import run_canary
from .gate_checks import Memory, Options, check_http, check_promql, check_sql, check_systemd, check_tcp
from .gate_cluster import check_postgres_node, check_qdrant_cluster
from .gate_options import Check, GateError
from .gate_probe import Answer, Job, Tell

Function = c.Callable[[Plan, Options, Memory, float], str]

FUNCTIONS: dict[str, Function] = {
    "http": check_http,
    "tcp": check_tcp,
    "sql": check_sql,
    "promql": check_promql,
    "systemd": check_systemd,
    "qdrant": check_qdrant_cluster,
    "postgres": check_postgres_node,
}


def make_plan(given: c.Mapping[str, Any], secrets: c.Mapping[str, str], tls: c.Mapping[str, str]) -> Plan:
    """The plan from the action plugin, or one that is enough for checks that bring all they need."""
    bare = {"host": socket.gethostname(), "address": "", "groups": (), "peers": {}, "ports": {}, "tls": {}, "run": ""}
    plan = Plan(**{**bare, **given, "secrets": {str(k): str(v) for k, v in secrets.items()}})
    return dataclasses.replace(plan, tls={k: v for k, v in tls.items() if v}) if any(tls.values()) else plan


def require(checks: c.Sequence[Check], plan: Plan, planned: bool) -> None:
    """What the checks need of plan and secrets. Raises GateError before anything is probed."""
    for check in checks:
        if check.type == "canary" and not planned:
            raise GateError(
                f"check '{check.name}': of: a canary needs the host's plan. Remedy: run health_gate as a task on a "
                "host of the inventory, where its action plugin makes the plan."
            )
        for name in check.secret_names():
            optional = check.type == "qdrant" and name == "qdrant_api_key"
            if not plan.secrets.get(name) and not optional:
                raise GateError(f"check '{check.name}': '{name}' is not in secrets. Remedy: add it there.")


def job_maker(plan: Plan) -> c.Callable[[Check, c.Mapping[str, Any], float], Job]:
    """What gate.Gate makes its probes with."""

    def make(check: Check, memory: c.Mapping[str, Any], limit: float) -> Job:
        return Job(lambda tell: probe(plan, check, memory, limit, tell), limit)

    return make


def probe(plan: Plan, check: Check, memory: c.Mapping[str, Any], limit: float, tell: Tell) -> Answer:
    """Ask one check once. Secrets are masked in its evidence."""
    if check.type == "canary":
        return run_canary(plan, check.options, limit, tell)
    record, mine = Recorder(plan, check.type), dict(memory)
    record.check(check.name, lambda: FUNCTIONS[check.type](plan, check.options, mine, limit))
    [row] = record.rows
    return Answer(row.result, row.evidence, mine)
