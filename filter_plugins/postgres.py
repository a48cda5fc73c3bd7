"""PostgreSQL's names and the plan of a run, for tasks and templates."""

from __future__ import annotations

import dataclasses
import ipaddress
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# Filters run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from module_utils.devmentor import postgres
from module_utils.devmentor.postgres_topology import Node, Plan, decide

REPORT = "__postgres_discovered"
ELSEWHERE = "__postgres_discovered_elsewhere"


def nodes_from_results(hosts: Sequence[str], hostvars: Any) -> list[Node]:
    """What each host reported in this run: itself, or asked by another host of the group (a loop's results).

    A host without a report, or with a failed one, is unknown.
    """
    asked: dict[str, Any] = {}
    for asker in hosts:
        found = hostvars[asker].get(ELSEWHERE) if asker in hostvars else None
        asked.update({item.get("item"): item for item in (found or {}).get("results", []) if not item.get("skipped")})
    nodes = []
    for host in hosts:
        own = hostvars[host].get(REPORT) if host in hostvars else None
        result: Any = asked.get(host) or own
        if not isinstance(result, Mapping):
            nodes.append(Node.unreachable(host, "was not asked (group offline, or failed before)"))
        elif not isinstance(result.get("instance"), Mapping):
            nodes.append(Node.unreachable(host, str(result.get("msg") or "did not answer")))
        else:
            nodes.append(Node.from_report(host, result["instance"]))
    return nodes


def postgres_plan(hosts: Sequence[str], hostvars: Any, bootstrap: str, play_hosts: Sequence[str]) -> dict[str, Any]:
    """The plan of this run as a dict (postgres_topology.Plan); the hosts in this run are `play_hosts`."""
    plan: Plan = decide(nodes_from_results(hosts, hostvars), bootstrap, frozenset(play_hosts))
    return dataclasses.asdict(plan)


def postgres_slot(host: str) -> str:
    """The slot of one host."""
    try:
        return postgres.slot_name(host)
    except postgres.PostgresError as error:
        raise AnsibleFilterError(str(error)) from error


def postgres_slots(hosts: Sequence[str], host: str) -> list[str]:
    """The slots a host keeps: one for each other host."""
    try:
        return [slot for name, slot in postgres.slot_names(list(hosts)).items() if name != host]
    except postgres.PostgresError as error:
        raise AnsibleFilterError(str(error)) from error


def postgres_quorum(hosts: Sequence[str], host: str) -> str:
    """synchronous_standby_names of a host that leads: a quorum of all others."""
    return postgres.quorum_names([name for name in hosts if name != host])


def postgres_cidr(address: str) -> str:
    """An address of pg_hba.conf: one host as a network; a host name stays as it is (the server resolves it)."""
    try:
        return str(ipaddress.ip_network(address))
    except ValueError:
        return address


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "postgres_plan": postgres_plan,
            "postgres_slot": postgres_slot,
            "postgres_slots": postgres_slots,
            "postgres_quorum": postgres_quorum,
            "postgres_cidr": postgres_cidr,
        }
