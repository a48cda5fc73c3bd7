"""Statuses of agents as they answered on the lab, of a whole cluster in order: pg1 leads, two poolers follow."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from module_utils.devmentor_ha.rules import Rule, final_need, first_rule

NODES = ["pg1", "pg2", "pg3", "pg4"]
POOLERS = ["pool1", "pool2"]
ADDRESSES = {name: f"10.0.0.{number}" for number, name in enumerate([*NODES, *POOLERS], 1)}
RULE = first_rule("pg1", NODES[1:])
NOW = 1795623982.4
LSN = 236477120


def server(name: str, rule: Rule = RULE) -> dict[str, Any]:
    """`postgres` of a node's status."""
    leads = name == rule.leader
    others = [node for node in NODES if node != name]
    row = {"state": "streaming", "sync_state": "quorum", "lag_bytes": 0, "lag_s": 0.0}
    slot = {"active": leads, "wal_status": "reserved" if leads else None, "type": "physical", "synced": False}
    return {
        "in_recovery": not leads,
        "lsn": LSN,
        "replay_lsn": None if leads else LSN,
        "checkpoint_timeline": rule.epoch,
        "timeline": rule.epoch,
        "streaming": not leads,
        "streams_from": None if leads else ADDRESSES[rule.leader],
        "system_identifier": "7712142784358600957",
        "synchronous_standby_names": final_need(rule).setting if leads else 'ANY 1 ("devmentor-fenced")',
        "promised": None,
        "started_at": NOW - 4000,
        "replication": [{"name": node, **row} for node in others] if leads else [],
        "slots": [{"name": node, **slot} for node in others],
        "waiting_commits": 0,
        "oldest_transaction_s": 0,
        "archive": {"failed_last": False, "archived": 7 if leads else 0},
        "has_rules": True,
        "state": "running",
        "age_s": 0.05,
    }


def node(name: str, rule: Rule = RULE) -> dict[str, Any]:
    return {
        "node": name,
        "duties": ["postgres"],
        "now": NOW,
        "observe_only": False,
        "paused": {"until": 0, "reason": ""},
        "acting": "",
        "promise": {"epoch": rule.epoch, "controller": "", "at": 0},
        "rule": rule.as_dict(),
        "rules": [rule.as_dict()],
        "committed": rule.as_dict(),
        "leading": rule.as_dict() if name == rule.leader else None,
        "committing": None,
        "waits_since": None,
        "following": {"epoch": rule.epoch, "leader": rule.leader},
        "suspects": None,
        "unwell": "",
        "writes_blocked": False,
        "lineage": [{"timeline": 1, "epoch": 1, "end": None}],
        "postgres": server(name, rule),
    }


def pooler(name: str, rule: Rule = RULE) -> dict[str, Any]:
    target = ADDRESSES[rule.leader]
    readers = ",".join(ADDRESSES[follower] for follower in sorted(rule.followers))
    entry = {"paused": False, "clients": 2, "waiting": 0, "servers": 3}
    return {
        "node": name,
        "duties": ["pgbouncer"],
        "now": NOW,
        "observe_only": False,
        "paused": {"until": 0, "reason": ""},
        "acting": "",
        "pooler": {
            "age_s": 0.7,
            "state": "running",
            "epoch": rule.epoch,
            "sub": rule.sub,
            "leader": rule.leader,
            "target": target,
            "databases": {
                "devmentor": {"host": target, **entry},
                "devmentor_ro": {"host": readers, **entry},
                "devmentor_session": {"host": target, **entry},
            },
        },
    }


def cluster(rule: Rule = RULE) -> dict[str, dict[str, Any]]:
    """name -> status, the caller's to change."""
    statuses = {name: node(name, rule) for name in NODES} | {name: pooler(name, rule) for name in POOLERS}
    return copy.deepcopy(statuses)


def put(answers: Any, way: Sequence[str | int], key: str | int, value: Any) -> None:
    """Replace what is at `way`.`key`; `...` removes it."""
    for step in way:
        answers = answers[step]
    if value is ...:
        del answers[key]
    else:
        answers[key] = value
