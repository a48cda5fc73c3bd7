"""What the nodes' statuses tell of an election above a rule."""

from typing import Any

from devmentor_ha.rules import Rule

COMMIT_PATIENCE_S = 15.0


def promised_for(status: dict[str, Any]) -> float:
    """Since how many seconds, by that node's own clock: the clocks of two hosts may differ."""
    return float(status["now"] - status["promise"]["at"])


def under_way(statuses: dict[str, Any], rule: Rule) -> bool:
    """Whether a candidate above `rule` is alive and about to commit: a further election would only set it back."""
    return any(
        (status.get("committing") or {}).get("epoch", 0) > rule.epoch
        and status["now"] - (status.get("waits_since") or 0) < COMMIT_PATIENCE_S
        for status in statuses.values()
    )
