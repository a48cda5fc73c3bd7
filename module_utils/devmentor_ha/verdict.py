"""What all agents' statuses together say of the cluster: one word, and every reason with what to do about it.

What was not answered or cannot be read is a reason too: unknown is never read as good. `views.py` reads a status.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .rules import Rule, final_need
from .textfiles import PostgresError, slot_name
from .views import NodeView, PoolerView, Unreadable

HEALTHY, DEGRADED, FAILING_OVER, NO_LEADER, UNKNOWN = "healthy", "degraded", "failing_over", "no_leader", "unknown"

LAG_LIMIT_BYTES = 16 * 1024 * 1024
DECIDING_S = 15.0
"""A promise above the committed rule that is younger than this is a failover under way."""


@dataclass(frozen=True)
class Reason:
    """Why the cluster is not healthy: `node` (empty for the cluster as a whole), `what` is wrong, the `remedy`."""

    node: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node or 'cluster'}: {self.what}. {self.remedy}."

    def as_dict(self) -> dict[str, str]:
        return {"node": self.node, "what": self.what, "remedy": self.remedy}


@dataclass(frozen=True)
class Verdict:
    """`rule`: the highest committed one. `leader`: who leads it by its own word, empty where nobody does. `nodes` and
    `poolers`: what is to be shown of those that answered."""

    state: str
    leader: str
    rule: Rule | None
    reasons: tuple[Reason, ...]
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    poolers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "leader": self.leader,
            "rule": self.rule.as_dict() if self.rule else None,
            "reasons": [reason.as_dict() for reason in self.reasons],
            "nodes": {name: dict(entry) for name, entry in self.nodes.items()},
            "poolers": {name: dict(entry) for name, entry in self.poolers.items()},
        }


def judge(
    nodes: Sequence[str],
    poolers: Sequence[str],
    answers: Mapping[str, Any],
    failures: Mapping[str, str] | None = None,
    away: Collection[str] = (),
) -> Verdict:
    """The verdict over PostgreSQL `nodes` and `poolers` (names, as in cluster.json; a host may be both).

    `answers`: name -> status. `failures`: name -> why there is none. A name in neither counts as silent. `away`: hosts
    that are known to be down; they are not missed, and heard if they answer.
    """
    known: dict[str, NodeView] = {}
    pools: dict[str, PoolerView] = {}
    blind: list[Reason] = []
    for name in dict.fromkeys([*nodes, *poolers]):
        if name not in answers:
            if name not in away:
                blind.append(_silent(name, failures or {}))
            continue
        try:
            if name in nodes:
                known[name] = NodeView.read(name, answers[name])
            if name in poolers:
                pools[name] = PoolerView.read(name, answers[name])
        except Unreadable as error:
            blind.append(_unreadable(name, error))
    shown = {name: node.brief() for name, node in known.items()}, {name: view.brief() for name, view in pools.items()}
    told = [rule for node in known.values() for rule in (node.committed, node.leading) if rule is not None]
    # Of two with one number, which must never be, the one that most tell of.
    rule = max(told, key=lambda rule: (rule.key, told.count(rule)), default=None)
    if rule is None:
        state, reason = _without_rule(nodes, known)
        return Verdict(state, "", None, (reason, *blind), *shown)
    leader = known.get(rule.leader)
    if leader is None or leader.leading is None or leader.leading.epoch != rule.epoch:
        leader = None
    state, reasons = _leadership(rule, leader, known)
    others = [node for node in known.values() if node.leading and node.name != rule.leader]
    rivals = any(other.key == rule.key and other.leader != rule.leader for other in told)
    if rivals or any(node.leading and node.leading.epoch == rule.epoch for node in others):
        state = UNKNOWN
    reasons += [_second(node, rule) for node in others]
    reasons += _membership(rule, nodes, set(away) - set(known))
    reasons += blind
    for node in known.values():
        reasons += _of_node(node, rule)
        reasons += _of_server(node, rule)
    if leader is not None:
        reasons += _of_leader(leader, rule)
    for view in pools.values():
        reasons += _of_pooler(view, rule)
        if view.name not in nodes:
            reasons += _of_agent(view, "It ends by itself then")
    if state == HEALTHY and reasons:
        state = DEGRADED
    return Verdict(state, leader.name if leader else "", rule, tuple(reasons), *shown)


def _whole(rule: Rule) -> str:
    return f"{rule.name} of {rule.leader} over {rule.w} of {', '.join(sorted(rule.followers))}"


def _log(name: str) -> str:
    return f"journalctl -u pgagent on {name} says why"


def _silent(name: str, failures: Mapping[str, str]) -> Reason:
    said = failures.get(name, "it was not asked").removeprefix(f"{name}: ")
    return Reason(name, f"no status ({said})", "Start the host, or its agent: systemctl start pgagent")


def _unreadable(name: str, error: Exception) -> Reason:
    return Reason(name, f"unreadable status ({error})", "Agents must be of one release: site.yml --tags pgagent")


def _without_rule(nodes: Sequence[str], known: Mapping[str, NodeView]) -> tuple[str, Reason]:
    if len(known) < len(nodes) or not nodes:
        what = "no agent that answers knows a committed rule, and not all answer"
        return UNKNOWN, Reason("", what, "Bring the others back first")
    if any(node.rule for node in known.values()):
        what = "the first rule was written and never acknowledged"
        return NO_LEADER, Reason("", what, "Have the replicas stream: pg_lsclusters on each")
    what = "there is no rule yet: a lost primary is not replaced"
    return NO_LEADER, Reason("", what, "site.yml --tags pgagent has the first rule")


def _leadership(rule: Rule, leader: NodeView | None, known: Mapping[str, NodeView]) -> tuple[str, list[Reason]]:
    """The state by who leads and what is under way, before anything else is looked at."""
    views = list(known.values())
    suspecting = sorted(view.name for view in views if view.suspects == rule.leader and view.name in rule.followers)
    under_way = [f"{view.name} is at {view.acting}" for view in views if view.decides]
    under_way += [
        f"{view.name} promised epoch {view.promise} to {view.controller}"
        for view in views
        if view.promise > rule.epoch and view.promise_age_s < DECIDING_S
    ]
    under_way += [
        f"{view.name} is about to commit rule {view.committing.name}"
        for view in views
        if view.committing and view.committing.epoch > rule.epoch
    ]
    if len(suspecting) >= rule.r:
        under_way.append(f"{', '.join(suspecting)} suspect {rule.leader}")
    if under_way:
        remedy = "Look again in a few seconds; where it stays, journalctl -u pgagent on the followers"
        return FAILING_OVER, [Reason("", "; ".join(under_way), remedy)]
    if leader is not None and leader.runs and leader.server["in_recovery"] is False:
        return HEALTHY, []
    present = sorted(rule.followers & set(known))
    if rule.leader not in known and len(present) < rule.r:
        what = (
            f"the leader {rule.leader} of rule {rule.name} is silent, and of its followers only "
            f"{', '.join(present) or 'none'} answer: whether it serves clients is not known"
        )
        wanted = ", ".join(sorted(rule.followers))
        return UNKNOWN, [Reason("", what, f"Bring back {rule.leader}, or {rule.r} of {wanted}")]
    streams = sorted(view.name for view in views if view.name in rule.followers and view.hears(rule.leader))
    if rule.leader not in known and streams:
        what = f"no status of the leader {rule.leader}, and {', '.join(streams)} stream from it: it may well lead"
        return UNKNOWN, [Reason("", what, f"Its agent first: systemctl start pgagent on {rule.leader}")]
    what = f"nobody leads; the highest committed rule is {rule.name} of {rule.leader}"
    return NO_LEADER, [Reason("", what, f"Start {rule.leader}; failover.yml --check says what another leader needs")]


def _second(node: NodeView, rule: Rule) -> Reason:
    assert node.leading is not None
    what = f"claims to lead rule {node.leading.name}, and rule {rule.name} is {rule.leader}'s"
    return Reason(node.name, what, "It acknowledges nothing and steps down by itself; promote nobody by hand")


def _membership(rule: Rule, nodes: Sequence[str], away: Collection[str]) -> Iterable[Reason]:
    for name in sorted(rule.members - set(nodes)):
        yield Reason(name, f"is in rule {rule.name} and no node", "Give it an agent, or remove it")
    for name in sorted(rule.members & set(away)):
        yield Reason(name, f"is known to be down and in rule {rule.name}", "The leader leaves it out, not the last one")
    for name in sorted(set(nodes) - rule.members - set(away)):
        if name in rule.removed:
            back = f"pg_maintenance.yml -e maintenance=add -e target={name}, or take it out of the inventory"
            yield Reason(name, f"was removed from the rule by an operator ({rule.name})", back)
        else:
            yield Reason(name, f"is not in rule {rule.name}", "It joins once it streams without lag")


def _of_agent(view: NodeView | PoolerView, resume: str) -> Iterable[Reason]:
    """Whether it does anything by itself."""
    if view.observe_only:
        yield Reason(view.name, "its agent only observes", "site.yml --tags pgagent without pgagent_observe_only")
    if view.paused_until > view.now:
        clock = time.strftime("%H:%M:%S UTC", time.gmtime(min(view.paused_until, 2**40)))
        yield Reason(view.name, f"paused until {clock}: {view.pause_reason}", resume)


def _of_node(node: NodeView, rule: Rule) -> Iterable[Reason]:
    """What its agent says of itself and of the others."""
    name = node.name
    yield from _of_agent(node, "pg_maintenance.yml -e maintenance=resume")
    if node.promise > rule.epoch and node.promise_age_s >= DECIDING_S:
        what = f"promised epoch {node.promise} to {node.controller}, and nothing came of it"
        yield Reason(name, what, "The leader reaffirms itself within seconds; else failover.yml --check")
    if node.suspects:
        yield Reason(name, f"suspects {node.suspects}: {node.suspicion}", "Look at that host and the network between")
    if node.unwell:
        yield Reason(name, f"asks to be replaced: {node.unwell}", "Mend that host")
    later = f"Within a second it does, else {_log(name)}"
    if node.committed is None or node.committed.key < rule.key:
        has = f"rule {node.committed.name}" if node.committed else "no rule"
        yield Reason(name, f"its agent knows {has}, others {rule.name}", later)
    elif node.committed != rule:
        what = f"its agent knows another rule {rule.name} than others: {_whole(node.committed)}, not {_whole(rule)}"
        yield Reason(name, what, f"This must never be: promote nobody, keep the data of both; {_log(name)}")
    elif node.rule != rule:
        has = f"rule {_whole(node.rule)}" if node.rule else "no rule"
        yield Reason(name, f"the newest in its WAL is {has}; {rule.name} is committed", later)
    if node.committing:
        what = f"waits for the acknowledgement of rule {node.committing.name}"
        yield Reason(name, what, f"{node.committing.w} of {', '.join(sorted(node.committing.followers))} must stream")
    if node.writes_blocked:
        what = f"commits wait: fewer than {rule.w} of {', '.join(sorted(rule.followers))} stream"
        yield Reason(name, what, 'Bring a follower back; docs/postgres-ha.md, "Writes are blocked"')
    if node.acting and not node.decides:
        yield Reason(name, f"is at {node.acting}", "Wait for its end")


def _of_server(node: NodeView, rule: Rule) -> Iterable[Reason]:
    """What its PostgreSQL does."""
    name = node.name
    if node.state != "running":
        yield Reason(name, f"PostgreSQL is {node.state}", f"Its agent starts or rejoins it; else {_log(name)}")
    elif not node.runs:
        yield Reason(name, "its agent has not seen PostgreSQL for seconds", "Load and disk of that host")
    elif name == rule.leader:
        if node.server["in_recovery"] is not False:
            yield Reason(name, f"leads rule {rule.name} and is in recovery", _log(name))
    elif node.server["in_recovery"] is not True:
        yield Reason(name, "runs as a primary and is not the leader", "Its agent rejoins it; else rejoin.yml")
    elif node.server["streaming"] is not True:
        yield Reason(name, "follows and does not stream", f"Its agent repoints it; else {_log(name)}")
    elif node.following != rule.leader:
        yield Reason(name, f"follows {node.following or 'nobody'}, not {rule.leader}", "Its agent repoints it")


def _of_leader(leader: NodeView, rule: Rule) -> Iterable[Reason]:
    """What the leader sees of its followers, and whether it archives."""
    name, setting = leader.name, final_need(rule).setting
    if leader.leading != rule:
        led = _whole(leader.leading) if leader.leading else "none"
        what = f"leads by rule {led}; {_whole(rule)} is committed"
        yield Reason(name, what, f"Within a second it does, else {_log(name)}")
    if not leader.runs:
        return
    if leader.server["synchronous_standby_names"] != setting:
        what = f"synchronous_standby_names is {leader.server['synchronous_standby_names']!r}, not {setting!r}"
        yield Reason(name, what, f"Nobody else may set it; systemctl restart pgagent on {name} commits the rule anew")
    rows = {row["name"]: row for row in leader.server["replication"]}
    slots = {slot["name"]: slot for slot in leader.server["slots"]}
    for follower in sorted(rule.followers):
        try:
            row, slot = rows.get(follower), slots.get(slot_name(follower))
        except PostgresError as error:
            yield _unreadable(follower, error)
            continue
        if row is None or row["state"] != "streaming":
            yield Reason(follower, f"{name} does not stream to it", _log(follower))
        elif row["lag_bytes"] is None or row["lag_bytes"] > LAG_LIMIT_BYTES:
            yield Reason(follower, f"lags by {row['lag_bytes']} bytes", "Its network, its disk, what it is asked")
        if slot is None:
            yield Reason(follower, f"has no replication slot on {name}", f"Its agent makes it; else {_log(name)}")
        elif slot["wal_status"] not in ("reserved", "extended"):
            what = f"its slot on {name} keeps no WAL for it ({slot['wal_status']})"
            yield Reason(follower, what, f"Its agent copies the data anew; else {_log(follower)}")
        elif slot["active"] is not True:
            yield Reason(follower, f"does not use its slot on {name}", _log(follower))
    if leader.server["archive"]["failed_last"] is not False:
        yield Reason(name, "the last try to archive WAL failed", "pgbackrest --stanza=devmentor check says why")


def _of_pooler(view: PoolerView, rule: Rule) -> Iterable[Reason]:
    name = view.name
    if not view.runs:
        yield Reason(name, f"PgBouncer is {view.state}", "systemctl status pgbouncer")
    if view.leader != rule.leader or view.follows != rule.key:
        has = f"rule {view.follows[0]}.{view.follows[1]} of {view.leader}" if view.leader else "no rule"
        what = f"PgBouncer follows {has}, not {rule.name} of {rule.leader}"
        yield Reason(name, what, f"Its agent leads it there within a second; else {_log(name)}")
    for database, entry in sorted(view.databases.items()):
        if entry["paused"]:
            yield Reason(name, f"{database} is paused", "If no switchover is under way, pgbouncer_pool: action resume")
        if not database.endswith("_ro") and entry["host"] != view.target:
            where = f"{database} leads to {entry['host']}, not to {view.target}"
            yield Reason(name, where, "Its agent reloads it; else pgbouncer_pool: action reload")
    if view.runs and not view.complete:
        has = ", ".join(sorted(view.databases)) or "none"
        yield Reason(name, f"has not all of the platform's databases, but {has}", "site.yml --tags pgbouncer")
