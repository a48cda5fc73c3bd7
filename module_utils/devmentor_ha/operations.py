"""What an operator has the agents do: failover, switchover, rejoin, restart, the poolers. Each function gives what
exit_json gets, and raises HaError; with `check` it changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .agents import Agents, HaError, View, as_yaml, ask, conclude, follows
from .client import AgentError

FAILOVER_LIMIT_S = 40.0  # fence 3 s a round, lead 3 s, 15 s until the rule is committed
SWITCHOVER_LIMIT_S = 400.0  # of which checkpoints may take 300 s
RESTART_LIMIT_S = 120.0
POOL_LIMIT_S = 5.0
POLL_S = 1.0


def failover(
    agents: Agents, check: bool, target: str | None, force: bool, force_data_loss: int | None, reason: str
) -> dict[str, Any]:
    """Replace the leader. The agent decides whether that is safe, and refuses for a healthy leader without `force`."""
    agents.known([target] if target else [])
    node = agents.look().controller()
    body = {"check": check, "force": force, "target": target, "force_data_loss": force_data_loss, "reason": reason}
    answer = ask(agents, node, "failover", body, FAILOVER_LIMIT_S)
    return conclude(node, answer, {"leader": target or "(the most advanced of the fenced followers)"})


def switchover(agents: Agents, check: bool, target: str | None, deadline_s: float) -> dict[str, Any]:
    """Move the lead while the leader lives; `deadline_s`: how long the poolers may wait for transactions to end.

    A target that leads already is no change.
    """
    agents.known([target] if target else [])
    view = agents.look()
    rule = view.committed
    if target and target == view.leader and rule is not None and rule.leader == target:
        return {"changed": False, "outcome": "none", "reasons": [f"{target} leads already"], "rule": rule.as_dict()}
    paused = view.statuses.get(view.leader, {}).get("paused", {"until": 0})
    if float(paused["until"]) > time.time():
        raise HaError(
            f"{view.leader} is paused ({paused['reason'] or 'no reason given'}): once replaced it would stay stopped. "
            "End the pause (pg_ha_config, action: resume) and run again.",
            outcome="refused",
        )
    node = view.controller(prefer=target)
    body = {"check": check, "target": target, "deadline_s": deadline_s}
    answer = ask(agents, node, "switchover", body, SWITCHOVER_LIMIT_S + deadline_s)
    return conclude(node, answer, {"leader": target or "(the follower of the highest priority)"})


def rejoin(agents: Agents, check: bool, node: str, method: str, timeout_s: float) -> dict[str, Any]:
    """Bring a former leader or a node out of line back as a follower. A copy of all data takes as long as it takes."""
    agents.known([node])
    answer = ask(agents, node, "rejoin", {"check": check, "method": method}, timeout_s)
    changed, used = bool(answer["changed"]), str(answer["method"])
    return {
        "changed": changed,
        "node": node,
        "method": used,
        "why": answer.get("why", ""),
        "diff": {"before": "", "after": f"{node}: {used}\n"} if changed else {},
    }


def restart(
    agents: Agents,
    check: bool,
    node: str,
    newer: Sequence[str],
    report_only: bool,
    allow_stall: bool = False,
    timeout_s: float = 0,
) -> dict[str, Any]:
    """Restart a follower's server; with `newer`, only where one of these files of this host is newer than it.

    Waits up to `timeout_s` until the node streams and the other followers suffice to acknowledge commits meanwhile;
    `allow_stall` does without the latter.
    """
    agents.known([node])
    deadline = time.monotonic() + timeout_s
    if newer and node != agents.node:
        raise HaError(f"newer: files of this host, {agents.node}, say nothing about {node}. Run it on {node}.")
    outdated = _newer_than(newer, _started_at(agents, node, deadline)) if newer else []
    facts = {"node": node, "outdated": outdated}
    if report_only or (newer and not outdated):
        return {"changed": False, **facts}
    while True:
        view = agents.look()
        reason = _not_spare(view, node, allow_stall)
        if not reason:
            break
        if node == view.leader or time.monotonic() > deadline:
            raise HaError(reason, outcome="refused", reasons=[reason])
        time.sleep(POLL_S)
    answer = ask(agents, node, "restart", {"check": check}, RESTART_LIMIT_S)
    return {"changed": bool(answer["changed"]), **facts}


def pool(agents: Agents, check: bool, action: str, deadline_s: float, nodes: Sequence[str]) -> dict[str, Any]:
    """`pause`, `resume`, `reload` or `kill` on poolers, all by default. Where one cannot be paused, those that this
    call paused are resumed."""
    agents.known(nodes, agents.poolers)
    asked = list(nodes) or agents.poolers
    statuses, failures = agents.client.fan_out(asked, "status", None, POOL_LIMIT_S)
    if failures:
        raise _pool_error(action, failures)
    before = {name: _paused(statuses[name].get("pooler", {}).get("databases", {})) for name in asked}
    if check:
        after = {name: _after(action, before[name]) for name in asked}
        return _pool_result(action, before, after)
    body = {"action": action, "deadline_s": deadline_s}
    answers, failures = agents.client.fan_out(asked, "pool", body, deadline_s + POOL_LIMIT_S)
    if failures:
        undone = ""
        running = sorted(name for name in asked if not any(before[name].values()))
        if action == "pause" and running:
            # Those without an answer too: what became of them is not known.
            _, stuck = agents.client.fan_out(running, "pool", {**body, "action": "resume"}, POOL_LIMIT_S)
            undone = f" Resumed: {', '.join(sorted(set(running) - set(stuck))) or 'none'}."
        raise _pool_error(action, failures, undone)
    before = {name: _paused(answers[name]["before"]) for name in asked}
    return _pool_result(action, before, {name: _paused(answers[name]["after"]) for name in asked})


def _started_at(agents: Agents, node: str, deadline: float) -> float:
    while True:
        try:
            server = agents.client.get(node, "status", POOL_LIMIT_S).get("postgres", {})
        except AgentError as error:
            raise HaError(f"{error}. Start pgagent.service there and run again.") from error
        if server.get("state") == "running":
            return float(server["started_at"])
        if time.monotonic() > deadline:
            raise HaError(f"{node}: PostgreSQL is {server.get('state')}; see journalctl -u pgagent there.")
        time.sleep(POLL_S)


def _not_spare(view: View, node: str, allow_stall: bool) -> str:
    """Why the node's server cannot be spared now; empty where it can."""
    rule = view.committed
    if rule is None or not view.leader:
        return f"No node leads a committed rule; {view.silent or 'all agents answer'}. See docs/postgres-ha.md."
    if node == view.leader:
        return f"{node} leads. Move the lead with pg_switchover (playbooks/switchover.yml) and run again."
    streaming = {name for name, status in view.statuses.items() if follows(status) and status["postgres"]["streaming"]}
    if node not in streaming:
        return f"{node} does not stream from {view.leader}; pg_rejoin (playbooks/rejoin.yml) brings it back."
    others = (rule.followers & streaming) - {node}
    if len(others) < rule.w and not allow_stall:
        return (
            f"Without {node} commits would wait: rule {rule.name} needs {rule.w} of "
            f"{', '.join(sorted(rule.followers))}, and {', '.join(sorted(others)) or 'none'} of the others stream. "
            "Bring one back, or accept it (allow_stall)."
        )
    return ""


def _newer_than(paths: Sequence[str], started_at: float) -> list[str]:
    """Of the files that are there, those put in place after `started_at`. A package's keep the time of its build."""
    found = {path: os.stat(path).st_ctime for path in paths if os.path.exists(path)}
    return [path for path, changed_at in found.items() if changed_at > started_at]


def _paused(databases: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """The entries that lead to the leader: replicas' are never paused."""
    return {name: bool(entry["paused"]) for name, entry in sorted(databases.items()) if not name.endswith("_ro")}


def _after(action: str, before: Mapping[str, bool]) -> dict[str, bool]:
    return {name: action == "pause" or (action == "reload" and paused) for name, paused in before.items()}


def _pool_result(
    action: str, before: Mapping[str, dict[str, bool]], after: Mapping[str, dict[str, bool]]
) -> dict[str, Any]:
    return {
        "changed": action in ("reload", "kill") or before != after,
        "paused": {name: any(entries.values()) for name, entries in after.items()},
        "diff": {"before": as_yaml(before), "after": as_yaml(after)},
    }


def _pool_error(action: str, failures: Mapping[str, AgentError], undone: str = "") -> HaError:
    said = "; ".join(str(failures[name]) for name in sorted(failures))
    if any(not failure.status for failure in failures.values()):
        remedy = "Start pgagent.service there"
    else:
        remedy = "See journalctl -u pgagent -u pgbouncer there; a pause needs transactions to end within deadline_s"
    return HaError(f"{action}: {said}.{undone} {remedy}, and run again.", silent=sorted(failures))
