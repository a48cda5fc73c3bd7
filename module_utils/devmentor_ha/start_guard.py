"""Whether this node's PostgreSQL may start (docs/postgres-ha-protocol.md, "Start guard")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .rules import NOBODY, Rule, RuleError

ALLOW, CLEAR, REFUSE = "allow", "clear the connection", "refuse"


@dataclass(frozen=True)
class Local:
    """What is on this node. `promised` and `following_epoch`: epochs. `synchronous`: synchronous_standby_names."""

    node: str
    standby: bool
    promised: int
    following_epoch: int
    synchronous: str
    rules: tuple[Rule, ...]


def judge(local: Local, answers: Mapping[str, Mapping[str, Any]], failures: Sequence[str] = ()) -> tuple[str, str]:
    """ALLOW, CLEAR (start without a connection to a leader) or REFUSE, and why.

    `answers`: statuses of the other PostgreSQL nodes' agents. What cannot be read counts as no answer.
    """
    if local.standby:
        if local.promised > local.following_epoch:
            return CLEAR, f"it promised epoch {local.promised} and follows one of {local.following_epoch}"
        return ALLOW, "a follower"
    if NOBODY in local.synchronous:
        return ALLOW, "a leader that acknowledges nothing"
    rules = list(local.rules)
    promises: dict[str, int] = {}
    for node, status in answers.items():
        try:
            told = [Rule.from_dict(status[name]) for name in ("rule", "committed") if status.get(name)]
            promises[node] = int(status["promise"]["epoch"])
        except (RuleError, KeyError, TypeError, ValueError, OverflowError):
            continue
        rules += told
    if not rules:
        return ALLOW, "no rule is known anywhere: a new cluster"
    highest = max(rules, key=lambda rule: rule.key)
    if highest.leader != local.node:
        return REFUSE, f"superseded: {highest.leader} leads rule {highest.name}; the agent brings this node back"
    above = {node: epoch for node, epoch in {**promises, local.node: local.promised}.items() if epoch > highest.epoch}
    if above:
        listed = ", ".join(f"{node} promised {epoch}" for node, epoch in sorted(above.items()))
        return REFUSE, f"another leader may be chosen just now: {listed}, rule {highest.name}"
    present = sorted(highest.followers & set(promises))
    if len(present) < highest.r:
        away = "; ".join(failures) or "none answered"
        return REFUSE, (
            f"{highest.r} of the followers {', '.join(sorted(highest.followers))} must say that no other leader was "
            f"chosen, {len(present)} did ({away}). Start their agents"
        )
    return ALLOW, f"rule {highest.name} still holds, {', '.join(present)} say"
