"""Which node is the primary, and what each node needs: decided from what all of them report, failing closed.

A deployment that is run again after a failover must not undo it, so the primary is never taken from the inventory: it
is the one node that runs and is not in recovery. `bootstrap` is read in one case only, when every node is known to
hold nothing. Everything that is not known counts as "may be the primary".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

ABSENT, PRISTINE, PRESENT, UNKNOWN = "absent", "pristine", "present", "unknown"


@dataclasses.dataclass(frozen=True)
class Node:
    """One host as discovered.

    data: absent, pristine (an empty cluster that was never used), present, or unknown (unreachable, unreadable).
    standby: for a running server what pg_is_in_recovery() says, for a stopped one whether standby.signal is there.
    timeline: the highest one the node has seen. error: why something is unknown.
    """

    host: str
    data: str
    running: bool = False
    standby: bool | None = None
    system_identifier: str = ""
    timeline: int = 0
    error: str = ""
    seeded: tuple[str, ...] = ()

    @classmethod
    def from_report(cls, host: str, report: Mapping[str, Any]) -> Node:
        """From the `instance` of module postgres_instance; anything malformed is unknown."""
        try:
            return cls(
                host=host,
                data=report["data"] if report["data"] in (ABSENT, PRISTINE, PRESENT) else UNKNOWN,
                running=bool(report["running"]),
                standby=None if report["standby"] is None else bool(report["standby"]),
                system_identifier=str(report["system_identifier"] or ""),
                timeline=int(report["timeline"] or 0),
                error=str(report["error"] or ""),
                seeded=tuple(report["seeded"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            return cls(host, UNKNOWN, error=f"its report cannot be read ({error!r})")

    @classmethod
    def unreachable(cls, host: str, why: str) -> Node:
        return cls(host, UNKNOWN, error=why or "not reachable")

    @property
    def known(self) -> bool:
        """All that the decision needs is known."""
        if self.data in (ABSENT, PRISTINE):
            return not self.running
        return self.data == PRESENT and self.standby is not None and bool(self.system_identifier) and self.timeline > 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do.

    primary: the host that is, or becomes, the primary. actions: per host keep, initdb, clone or start; hosts that are
    unknown or blocked have none. blocked: hosts that must not be started by this run, with the reason and the remedy.
    refusal: set where nothing may be done at all. synchronous_seeded: the quorum was set once and is not ours now.
    """

    primary: str = ""
    bootstrap: bool = False
    synchronous_seeded: bool = False
    actions: dict[str, str] = dataclasses.field(default_factory=dict)
    blocked: dict[str, str] = dataclasses.field(default_factory=dict)
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    refusal: str = ""


def _names(nodes: list[Node]) -> str:
    return ", ".join(node.host for node in nodes)


def _reasons(nodes: list[Node]) -> str:
    return "; ".join(f"{node.host}: {node.error or 'state unknown'}" for node in nodes)


def decide(nodes: list[Node], bootstrap: str, reach: frozenset[str] | None = None) -> Plan:
    """The plan for these nodes; `bootstrap` is the host that starts a cluster where none exists.

    reach: the hosts that this run may change, all where it is left out. A primary that has to be made or started must
    be one of them.
    """
    plan = _decide(nodes, bootstrap)
    idle = plan.actions.get(plan.primary) in ("initdb", "start")
    if idle and reach is not None and plan.primary not in reach:
        return Plan(
            unknown=plan.unknown,
            refusal=f"No PostgreSQL primary runs; {plan.primary} is to lead, but is not part of this run. Run again "
            "without --limit, or with it in the limit.",
        )
    return plan


def _decide(nodes: list[Node], bootstrap: str) -> Plan:
    unknown = [node for node in nodes if not node.known]
    whys = {node.host: node.error or "state unknown" for node in unknown}
    holders = [node for node in nodes if node.known and node.data == PRESENT]
    refusal = _identity_refusal(holders)
    if refusal:
        return Plan(refusal=refusal, unknown=whys)
    leaders = [node for node in holders if node.running and not node.standby]
    if len(leaders) > 1:
        listed = ", ".join(f"{node.host} (timeline {node.timeline})" for node in leaders)
        return Plan(
            unknown=whys,
            refusal=f"{listed} all run as PostgreSQL primary. Nothing was changed. Find out which of them the replicas "
            "follow (pg_stat_replication), stop the others, and bring those back as replicas.",
        )
    if leaders:
        return _with_primary(leaders[0], nodes, unknown, whys)
    if unknown:
        return Plan(
            unknown=whys,
            refusal=f"No PostgreSQL primary runs, and not every host is known ({_reasons(unknown)}): one of those may "
            "be the primary or hold newer data. Bring them back, or start the right primary by hand "
            "(systemctl start postgresql@17-main) and run again; a host that is gone for good is removed from the "
            "group postgres.",
        )
    if not holders:
        return _bootstrap(nodes, bootstrap)
    return _stopped(nodes, holders, whys)


def _identity_refusal(holders: list[Node]) -> str:
    identities: dict[str, list[Node]] = {}
    for node in holders:
        identities.setdefault(node.system_identifier, []).append(node)
    if len(identities) < 2:
        return ""
    listed = "; ".join(f"{identity} on {_names(group)}" for identity, group in sorted(identities.items()))
    return (
        f"The hosts of the group postgres hold different databases (system identifiers {listed}). Nothing was changed. "
        "Move the data directory of the wrong ones away (/var/lib/postgresql/17/main), then run again: they are copied "
        "from the primary."
    )


def _with_primary(primary: Node, nodes: list[Node], unknown: list[Node], whys: dict[str, str]) -> Plan:
    ahead = [node for node in nodes if node.known and node.data == PRESENT and node.timeline > primary.timeline]
    if ahead:
        listed = ", ".join(f"{node.host} (timeline {node.timeline})" for node in ahead)
        return Plan(
            unknown=whys,
            refusal=f"{primary.host} runs as primary on timeline {primary.timeline}, but {listed} saw a later one: "
            f"{primary.host} was replaced by a failover, or one is under way. Run again in a minute; if it stays, "
            "playbooks/pg_status.yml says who is to lead.",
        )
    actions, blocked = {primary.host: "keep"}, {}
    for node in nodes:
        if node is primary or node in unknown:
            continue
        if node.data in (ABSENT, PRISTINE):
            actions[node.host] = "clone"
        elif node.running:
            actions[node.host] = "keep"
        elif node.standby:
            actions[node.host] = "start"
        else:
            blocked[node.host] = (
                f"{node.host} holds the data of a former primary, and {primary.host} is the primary now: started, it "
                "would be a second one. Its agent rejoins it (pg_rewind or a copy), see playbooks/rejoin.yml; or move "
                f"/var/lib/postgresql/17/main away and run again to copy it from {primary.host}."
            )
    seeded = "synchronous_standby_names" in primary.seeded
    return Plan(primary.host, False, seeded, actions, blocked, whys)


def _bootstrap(nodes: list[Node], bootstrap: str) -> Plan:
    hosts = [node.host for node in nodes]
    if bootstrap not in hosts:
        return Plan(
            refusal=f"postgres_bootstrap_primary is {bootstrap!r}, which is not in the group postgres "
            f"({', '.join(hosts)}). Name one of them: there is no data yet, and it becomes the first primary."
        )
    actions = {host: "initdb" if host == bootstrap else "clone" for host in hosts}
    return Plan(bootstrap, True, False, actions)


def _stopped(nodes: list[Node], holders: list[Node], whys: dict[str, str]) -> Plan:
    """Every node is known, some hold data, none runs as primary."""
    leaders = [node for node in holders if not node.standby]
    if len(leaders) != 1:
        what = f"{_names(leaders)} all stopped as primary" if leaders else f"{_names(holders)} are all replicas"
        return Plan(
            unknown=whys,
            refusal=f"No PostgreSQL primary runs: {what}. Which one leads is the failover's decision, not the "
            "deployment's: their agents start them and choose. Run again when one leads; docs/postgres-ha.md says "
            "what to do where nobody does.",
        )
    leader = leaders[0]
    ahead = [node for node in holders if node.timeline > leader.timeline]
    if ahead:
        return Plan(
            refusal=f"{leader.host} stopped as primary on timeline {leader.timeline}, but {_names(ahead)} has seen a "
            f"later one: {leader.host} was replaced by a failover. Bring the newer primary and its agent back, then "
            "run again.",
        )
    actions = {leader.host: "start"}
    for node in nodes:
        if node is not leader:
            actions[node.host] = "clone" if node.data != PRESENT else "keep" if node.running else "start"
    return Plan(leader.host, False, "synchronous_standby_names" in leader.seeded, actions)
