"""The cluster asked and shown: the verdict over all agents, and the lines that an operator reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .agents import STATUS_LIMIT_S, Agents
from .verdict import DEGRADED, FAILING_OVER, HEALTHY, NO_LEADER, UNKNOWN, Verdict, judge

ORDER = (HEALTHY, DEGRADED, FAILING_OVER, NO_LEADER, UNKNOWN)
"""From what a host that sees all says, to what one says that sees nobody."""

MEANING = {
    HEALTHY: "any one node may be lost at any time",
    DEGRADED: "somebody leads; what follows is to be mended",
    FAILING_OVER: "a leader is being chosen",
    NO_LEADER: "nothing can be written",
    UNKNOWN: "the agents' answers do not tell; it is not good until it is known to be",
}


def examine(agents: Agents, away: Collection[str] = (), limit_s: float = STATUS_LIMIT_S) -> Verdict:
    """Ask every agent at once. `away`: hosts that are known to be down."""
    names = list(dict.fromkeys([*agents.nodes, *agents.poolers]))
    answers, failures = agents.client.fan_out(names, "status", None, limit_s)
    silent = {name: str(error) for name, error in failures.items()}
    return judge(agents.nodes, agents.poolers, answers, silent, away)


def summary(verdict: Mapping[str, Any]) -> str:
    """One line, of a verdict as a dictionary."""
    rule = verdict["rule"]
    leads = f"{verdict['leader']} leads" if verdict["leader"] else "nobody leads"
    if rule is None:
        return f"{verdict['state']}: no committed rule is known"
    followers = ", ".join(rule["followers"])
    name = f"{rule['epoch']}.{rule['sub']}"
    return f"{verdict['state']}: {leads}, rule {name}: {rule['leader']} over {rule['w']} of {followers}"


def lines(verdict: Mapping[str, Any]) -> list[str]:
    """What an operator reads, of a verdict as a dictionary: the state, a line for each node, every reason."""
    state = verdict["state"]
    found = [f"{summary(verdict)} ({MEANING[state]})"]
    nodes, poolers = verdict["nodes"], verdict["poolers"]
    width = max((len(name) for name in [*nodes, *poolers]), default=0)
    for name, node in nodes.items():
        words = [f"rule {node['committed'] or '-'}", f"promise {node['promise']}"]
        words += [f"timeline {node['timeline']}"] if node["timeline"] is not None else []
        if node["lsn"] is not None:
            words.append(f"at {int(node['lsn']) >> 32:X}/{int(node['lsn']) & 0xFFFFFFFF:X}")
        words += [f"streams from {node['following']}"] if node["streaming"] else []
        words += [node["acting"]] if node["acting"] else []
        words += [f"suspects {node['suspects']}"] if node["suspects"] else []
        words += ["paused"] if node["paused"] else []
        found.append(f"  {name:{width}}  {node['role']:8}  {', '.join(words)}")
    for name, pooler in poolers.items():
        words = [f"rule {pooler['rule']}", f"to {pooler['leader'] or 'nobody'} {pooler['target']}".strip()]
        words += [f"paused: {', '.join(pooler['paused'])}"] if pooler["paused"] else []
        found.append(f"  {name:{width}}  {'pooler':8}  {pooler['state']}, {', '.join(words)}")
    for reason in verdict["reasons"]:
        found.append(f"- {reason['node'] or 'cluster'}: {reason['what']}. {reason['remedy']}.")
    return found


def seen_from(verdicts: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Of verdicts by the host that gave them: the host that sees most, and its lines with one for each that differs.

    In a partition the hosts of the smaller side see less. Raises ValueError without any.
    """
    if not verdicts:
        raise ValueError("no host gave a verdict")
    best = min(sorted(verdicts), key=lambda host: _rank(verdicts[host]))
    found = lines(verdicts[best])
    for host in sorted(verdicts):
        if host != best and (verdicts[host]["state"], verdicts[host]["rule"]) != (
            verdicts[best]["state"],
            verdicts[best]["rule"],
        ):
            found.append(f"! {host} sees it otherwise: {summary(verdicts[host])}")
    return best, found


def _rank(verdict: Mapping[str, Any]) -> tuple[Sequence[int], int, int]:
    rule = verdict["rule"] or {"epoch": 0, "sub": 0}
    return [-int(rule["epoch"]), -int(rule["sub"])], ORDER.index(verdict["state"]), len(verdict["reasons"])
