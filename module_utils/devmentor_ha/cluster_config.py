"""The first rule, pauses and membership: what module pg_ha_config does. Each function gives what exit_json gets, and
raises HaError."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .agents import Agents, HaError, View, as_yaml, ask, rule_diff
from .client import AgentError

CALL_LIMIT_S = 5.0
CHANGE_LIMIT_S = 70.0  # the agents wait 60 s for the acknowledgement of a rule
RETRY_S = 1.0


def bootstrap(agents: Agents, check: bool, timeout_s: float) -> dict[str, Any]:
    """Rule 1.0, from whichever node runs as the primary. A rule anywhere ends it at once, without a change.

    Agents and replicas may have been started a moment ago: what refuses is asked again until `timeout_s` is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        view = agents.look()
        failures = list(view.failures.values())
        if view.committed is not None:
            return {"changed": False, "rule": view.committed.as_dict()}
        for node in view.statuses:
            try:
                answer = agents.client.post(node, "members", {"bootstrap": True, "check": check}, CHANGE_LIMIT_S)
            except AgentError as error:
                failures.append(error)
                continue
            rule = answer.get("rule")
            changed = bool(answer["changed"])
            said = rule_diff(None, rule or {"epoch": 1, "sub": 0, "leader": node}) if changed else {}
            return {"changed": changed, "rule": rule, "leader": node, "diff": said}
        if check or time.monotonic() > deadline:
            break
        time.sleep(RETRY_S)
    reasons = [str(error) for error in failures]
    if check:
        said = rule_diff(None, {"epoch": 1, "sub": 0, "leader": "(whichever node runs as the primary then)"})
        return {"changed": True, "rule": None, "leader": "", "reasons": reasons, "diff": said}
    away = sorted(error.node for error in failures if not error.status)
    hint = f"The primary may be one of {', '.join(away)}, which do not answer. " if away else ""
    raise HaError(
        f"No node could begin the cluster's first rule, so nobody replaces a lost primary: {'; '.join(reasons)}. {hint}"
        "Have the primary and a replica run (site.yml --tags postgres), and every agent answer; run again.",
        reasons=reasons,
        silent=away,
    )


def pause(
    agents: Agents, until: float, reason: str, check: bool, nodes: Sequence[str] = (), away: Sequence[str] = ()
) -> dict[str, Any]:
    """No automatic action on `nodes` (all by default) before `until`, seconds since 1970; 0 ends a pause.

    Nodes that do not answer fail it, except those `away`: a node that is down does nothing by itself.
    """
    agents.known([*nodes, *away])
    asked = list(nodes) or agents.nodes
    body = {"until": until, "reason": reason, "check": check}
    answers, failures = agents.client.fan_out(asked, "pause", body, CALL_LIMIT_S)
    before = {name: answers[name]["before"]["until"] for name in sorted(answers)}
    after = {name: answers[name]["paused"]["until"] if answers[name]["changed"] else before[name] for name in before}
    facts = {
        "changed": any(answer["changed"] for answer in answers.values()),
        "nodes": sorted(answers),
        "silent": sorted(failures),
        "until": until,
        "diff": {"before": as_yaml(before), "after": as_yaml(after)},
    }
    missing = sorted(set(failures) - set(away))
    if missing or not answers:
        raise HaError(
            f"{'; '.join(str(failures[name]) for name in sorted(failures))}. "
            f"{'Done on ' + ', '.join(sorted(answers)) + '. ' if answers else ''}"
            "Start pgagent.service there and run again, or name nodes that are down as away.",
            **facts,
        )
    return facts


def change_member(agents: Agents, verb: str, member: str, check: bool) -> dict[str, Any]:
    """`add` or `remove` a follower; only the leader can, since the change is acknowledged by the followers it has."""
    agents.known([member])
    view = agents.look()
    leader = _leader(view)
    answer = ask(agents, leader, "members", {verb: member, "check": check}, CHANGE_LIMIT_S)
    before, after = answer["before"], dict(answer["rule"])
    if answer["changed"] and after == before:  # check mode
        followers, removed = {*before["followers"]} - {member}, {*before["removed"]} - {member}
        (followers if verb == "add" else removed).add(member)
        sets = {"followers": sorted(followers), "removed": sorted(removed)}
        after = {**before, **sets, "sub": before["sub"] + 1, "w": (len(followers) + 1) // 2}
    return {
        "changed": bool(answer["changed"]),
        "leader": leader,
        "before": before,
        "rule": answer["rule"],
        "diff": rule_diff(before, after),
    }


def show(agents: Agents) -> dict[str, Any]:
    """Who leads by which rule, and who answers."""
    view = agents.look()
    return {
        "changed": False,
        "leader": view.leader,
        "rule": view.committed.as_dict() if view.committed else None,
        "nodes": sorted(view.statuses),
        "silent": sorted(view.failures),
    }


def _leader(view: View) -> str:
    if not view.leader:
        raise HaError(
            "No node leads a committed rule, so no follower can be added or removed. "
            f"{view.silent or 'All agents answer'}. See docs/postgres-ha.md, PostgresNoLeader.",
            silent=sorted(view.failures),
        )
    return view.leader
