"""verify's checks of the failover agents: a lost leader would be replaced, and the poolers follow."""

from __future__ import annotations

import collections.abc as c
import time
from typing import Any

from .checks_base import Failed, Plan
from .checks_client import ask


def agent_status(plan: Plan) -> dict[str, Any]:
    """What the host's own agent knows (docs/postgres-ha-protocol.md, "The agents' API")."""
    url = f"https://{plan.address}:{plan.ports['pgagent']}/v1/status"
    token = {"Authorization": f"Bearer {plan.secrets['agent_token']}"}
    status: dict[str, Any] = ask(plan, "GET", url, headers=token).json()
    return status


def name(rule: c.Mapping[str, Any]) -> str:
    return f"{rule['epoch']}.{rule['sub']}"


def judge_node(status: c.Mapping[str, Any]) -> str:
    """A node that takes part: in the committed rule, as its leader or following it, and nobody is in doubt."""
    rule, node = status["committed"], status["node"]
    if status["observe_only"] or status["paused"]["until"] > time.time():
        raise Failed("does nothing by itself: " + ("observe_only" if status["observe_only"] else "paused"))
    if rule is None:
        raise Failed("no rule is committed")
    if status["promise"]["epoch"] > rule["epoch"]:
        raise Failed(f"promised epoch {status['promise']['epoch']}, and rule {name(rule)} is the last committed one")
    if status["suspects"]:
        raise Failed(f"suspects {status['suspects']['leader']}: {status['suspects']['reason']}")
    if rule["leader"] == node:
        if not status["leading"]:
            raise Failed(f"is to lead rule {name(rule)} and does not")
        if status["writes_blocked"]:
            raise Failed(f"leads rule {name(rule)} and too few of its followers stream")
        return f"leads rule {name(rule)}, {rule['w']} of {', '.join(rule['followers'])} acknowledge"
    if node not in rule["followers"]:
        raise Failed(f"is not in rule {name(rule)} ({rule['leader']}, {', '.join(rule['followers'])})")
    if status["following"]["leader"] != rule["leader"] or not status["postgres"].get("streaming"):
        raise Failed(f"does not stream from {rule['leader']}, which leads rule {name(rule)}")
    return f"follows {rule['leader']}, rule {name(rule)}"


def judge_pooler(status: c.Mapping[str, Any]) -> str:
    """A pooler whose targets were led by a rule."""
    pooler = status["pooler"]
    if pooler["state"] != "running":
        raise Failed("its console does not answer the agent")
    if not pooler["epoch"]:
        raise Failed("its targets follow no rule yet")
    return f"leads to {pooler['leader']}, rule {name(pooler)}"
