"""What a controller decides from the answers of fenced nodes (docs/postgres-ha-protocol.md, "Failover", 1 to 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .rules import (
    Need,
    Rule,
    RuleError,
    final_need,
    next_rule,
    superseded,
    transition,
    uncovered,
    write_quorum,
)

FOLLOWER, LEADER, DEMOTED = "follower", "leader", "demoted"


class Abort(Exception):
    """A failover that stops before anybody is promoted. `reasons` are for the operator and the log."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)


@dataclass(frozen=True)
class Answer:
    """What a node said once it was fenced for the epoch.

    `mode`: FOLLOWER, LEADER (it runs as a primary) or DEMOTED (it led, promised and was stopped for this epoch).
    `rules`: the rows that its WAL holds, from the last committed on. `lsn`: the end of its WAL in bytes; for a stopped
    leader that of its shutdown checkpoint's end. `timeline`: the timeline of that position. `committed`: the highest
    rule that the node knows to be committed, by its WAL or by word of a leader.
    """

    node: str
    mode: str
    rules: tuple[Rule, ...]
    lsn: int
    timeline: int
    committed: Rule | None = None

    @property
    def newest(self) -> tuple[int, int]:
        return max((rule.key for rule in self.rules), default=(0, 0))


@dataclass(frozen=True)
class Choice:
    """Who is to lead, under which rule, and what its row waits for."""

    candidate: str
    rule: Rule
    need: Need
    replaced: tuple[Rule, ...]


def next_epoch(epochs: Iterable[int]) -> int:
    """One more than the highest promise and the highest rule that anybody told of; the first failover is epoch 2."""
    return max([1, *epochs]) + 1


def eligible_of(answers: Sequence[Answer], rules: Sequence[Rule]) -> list[Answer]:
    """Who may lead: the running nodes of all rules that are superseded.

    Not only of the highest one, which may never have been committed: a node that it drops may be the only one with what
    was acknowledged before.
    """
    members = frozenset[str]().union(*(rule.members for rule in rules))
    return [answer for answer in answers if answer.mode != DEMOTED and answer.node in members]


def choose(
    answers: Sequence[Answer],
    epoch: int,
    priorities: Mapping[str, int] | None = None,
    target: str | None = None,
    force_data_loss: bool = False,
) -> Choice:
    """Decide from the answers of nodes that promised `epoch` and are fenced.

    The candidate is the most advanced node, by the newest rule in its WAL, then by LSN, never by LSN alone;
    `priorities` (higher is better) and the name break ties. A `target` (switchover, reaffirmation, operator) must be as
    advanced as the best. `force_data_loss` goes on where the rules are not covered, with those who answered alone.
    Raises Abort with every reason.
    """
    if not answers:
        raise Abort(["no node answered"])
    try:
        rules = superseded(
            (rule for answer in answers for rule in answer.rules),
            max((a.committed for a in answers if a.committed), key=lambda rule: rule.key, default=None),
        )
    except RuleError as error:
        raise Abort([str(error)]) from error
    if rules[-1].epoch >= epoch:
        raise Abort([f"rule {rules[-1].name} was written already: epoch {epoch} is not above it"])
    missing = uncovered(rules, [answer.node for answer in answers])
    if missing and not force_data_loss:
        raise Abort(missing)
    eligible = eligible_of(answers, rules)
    if not eligible:
        raise Abort([f"no node of the rules from {rules[0].name} to {rules[-1].name} answered and runs"])
    best = max(eligible, key=lambda answer: (answer.newest, answer.lsn))
    demoted = [answer for answer in answers if answer.mode == DEMOTED]
    behind = [answer for answer in demoted if (answer.newest, answer.lsn) > (best.newest, best.lsn)]
    if behind and not force_data_loss:
        raise Abort([f"{best.node} has not everything that {behind[0].node} wrote before it stopped"])
    level = [a for a in eligible if (a.newest, a.lsn) == (best.newest, best.lsn)]
    if target is not None:
        if target not in {answer.node for answer in level}:
            raise Abort([f"{target} is not as advanced as {best.node} (rule {best.newest}, LSN {best.lsn})"])
        candidate = target
    else:
        ranked = priorities or {}
        candidate = min(level, key=lambda answer: (-ranked.get(answer.node, 0), answer.node)).node
    if force_data_loss:
        return _forced(rules, candidate, epoch, {answer.node for answer in eligible})
    rule = next_rule(rules, candidate, epoch)
    return Choice(candidate, rule, transition(rules, rule), tuple(rules))


def _forced(rules: Sequence[Rule], candidate: str, epoch: int, present: set[str]) -> Choice:
    """Only those who answered, and no word to the old quorum: what it alone holds is given up."""
    followers = frozenset(present - {candidate})
    if not followers:
        raise Abort([f"only {candidate} answered: with one copy nothing is acknowledged. Bring one more node back"])
    removed = rules[-1].removed - present
    rule = Rule(epoch, 0, candidate, followers, write_quorum(len(followers)), rules[0].key, removed)
    return Choice(candidate, rule, final_need(rule), tuple(rules))
