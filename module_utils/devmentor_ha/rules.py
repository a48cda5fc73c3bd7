"""Rules, quorums, and when a rule is covered (docs/postgres-ha-protocol.md, "Two records" and "Covered")."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Key = tuple[int, int]
"""(epoch, sub): orders rules."""

NOBODY = "devmentor-fenced"
"""A standby name that no node has: a leader that waits for it acknowledges nothing."""


class RuleError(ValueError):
    """Something that is no rule, or no possible change of one; the message says why."""


def write_quorum(followers: int) -> int:
    """W: how many of F followers must have flushed a commit before it is acknowledged, ceil(F / 2)."""
    return (followers + 1) // 2


def fence_quorum(followers: int) -> int:
    """R: how many of F followers must be fenced, max(F - W + 1, floor(F / 2) + 1).

    The first term meets every write quorum, the second every other fence quorum.
    """
    return max(followers - write_quorum(followers) + 1, followers // 2 + 1)


@dataclass(frozen=True, order=False)
class Rule:
    """Who leads, who follows, how many followers a commit waits for. `prior`: the newest rule known to be committed
    when this one was written (its own key for the first one). `removed`: nodes that an operator took out, which do not
    join again by themselves."""

    epoch: int
    sub: int
    leader: str
    followers: frozenset[str]
    w: int
    prior: Key
    removed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.epoch < 1 or self.sub < 0:
            raise RuleError(f"epoch {self.epoch}.{self.sub} is no epoch: the first is 1.0")
        if self.leader in self.followers or not self.followers:
            raise RuleError(f"rule {self.epoch}.{self.sub}: a leader needs at least one follower other than itself")
        if self.w != write_quorum(len(self.followers)):
            raise RuleError(f"rule {self.epoch}.{self.sub}: w is {self.w}, not {write_quorum(len(self.followers))}")
        both = sorted(self.removed & self.members)
        if both:
            raise RuleError(f"rule {self.epoch}.{self.sub}: {both} are in it and removed")
        if self.prior > self.key:
            raise RuleError(f"rule {self.epoch}.{self.sub}: prior {self.prior} is later than itself")

    @property
    def key(self) -> Key:
        return (self.epoch, self.sub)

    @property
    def r(self) -> int:
        return fence_quorum(len(self.followers))

    @property
    def meet(self) -> int:
        """How many of its followers meet every R of them: F - R + 1."""
        return len(self.followers) - self.r + 1

    @property
    def members(self) -> frozenset[str]:
        return self.followers | {self.leader}

    @property
    def name(self) -> str:
        return f"{self.epoch}.{self.sub}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "sub": self.sub,
            "leader": self.leader,
            "followers": sorted(self.followers),
            "w": self.w,
            "prior_epoch": self.prior[0],
            "prior_sub": self.prior[1],
            "removed": sorted(self.removed),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Rule:
        """The reverse of `as_dict`. Raises RuleError for anything that is no rule."""
        try:
            return cls(
                int(entry["epoch"]),
                int(entry["sub"]),
                str(entry["leader"]),
                frozenset(str(name) for name in entry["followers"]),
                int(entry["w"]),
                (int(entry["prior_epoch"]), int(entry["prior_sub"])),
                frozenset(str(name) for name in entry["removed"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # JSON's Infinity is no whole number
            raise RuleError(f"{dict(entry)!r} is no rule: {error}") from error


def first_rule(leader: str, followers: Iterable[str]) -> Rule:
    """Rule 1.0 of a new cluster."""
    names = frozenset(followers)
    return Rule(1, 0, leader, names, write_quorum(len(names)), (1, 0))


@dataclass(frozen=True)
class Need:
    """At least `count` of `among` must have flushed."""

    count: int
    among: frozenset[str]

    @property
    def setting(self) -> str:
        """As synchronous_standby_names. Never empty: that would acknowledge with one copy."""
        names = ", ".join('"' + name.replace('"', '""') + '"' for name in sorted(self.among))
        return f"ANY {self.count} ({names})"

    def met_by(self, nodes: Collection[str]) -> bool:
        return len(self.among & set(nodes)) >= self.count


def final_need(rule: Rule) -> Need:
    """What a commit waits for while `rule` is in force and committed."""
    return Need(rule.w, rule.followers)


def handover_need(old: Rule, new_leader: str) -> Need:
    """What a row that supersedes `old` needs of the old followers, so that whoever knows only `old` and covers it meets
    the row.

    R of them, of which the new leader may be one: that meets R followers, and the old leader with F - R + 1. The old
    leader itself has the row, so a cover with it meets the row anyway: F - R + 1, and no less than the old quorum.
    """
    if new_leader == old.leader:
        return Need(max(old.meet, old.w), old.followers)
    if new_leader in old.followers:
        return Need(old.r - 1, old.followers - {new_leader})
    return Need(old.r, old.followers)


def combined(needs: Sequence[Need]) -> Need:
    """One `ANY k (S)` that satisfies all of `needs`: k = max over them of count + |S - among|.

    Of all sets it takes the one with the smallest k, and of those the largest, so that the fewest nodes are waited for.
    Raises RuleError without any need.
    """
    wanted = [need for need in needs if need.count > 0]
    if not wanted:
        raise RuleError("a commit must wait for somebody")
    names = sorted(frozenset[str]().union(*(need.among for need in wanted)))
    best: Need | None = None
    for size in range(len(names), 0, -1):
        for chosen in itertools.combinations(names, size):
            among = frozenset(chosen)
            count = max(need.count + len(among - need.among) for need in wanted)
            if count <= len(among) and (best is None or count < best.count):
                best = Need(count, among)
    assert best is not None  # the union always does: count + |S - among| <= |S|
    return best


def superseded(rules: Iterable[Rule], committed: Rule | None = None) -> list[Rule]:
    """Of rules seen, those that a new leader must cover: from the last known to be committed to the highest.

    Every row that was written after a commit names that commit as its prior, so the prior of the highest row is the
    last rule that is known to be committed. Two controllers may have written rows of one epoch for different leaders,
    of which at most one can be committed: both count. `committed`: the highest rule that any node knows to be committed
    (its leader says so), which may be later than a prior. Raises RuleError where a prior was not seen: a node whose WAL
    holds a row holds its prior too.
    """
    seen = {(rule.key, rule.leader): rule for rule in [*rules, *([committed] if committed else [])]}
    if not seen:
        raise RuleError("no node has a rule: the cluster was never bootstrapped")
    top = max(seen)[0]
    floor = min(rule.prior for rule in seen.values() if rule.key == top)
    if committed is not None:
        floor = max(floor, committed.key)
    if floor not in {rule.key for rule in seen.values()}:
        raise RuleError(f"rule {top[0]}.{top[1]} names {floor[0]}.{floor[1]} as its prior, which nobody has")
    return [seen[ident] for ident in sorted(seen) if ident[0] >= floor]


def covered(rule: Rule, fenced: Collection[str]) -> bool:
    """Whether no commit under `rule` can be acknowledged any more, all acknowledged ones are on `fenced` nodes, and
    nobody else can cover it for the same epoch: R followers, or the leader with F - R + 1 of them.

    The leader alone would do for the first two. But then two controllers could decide for one epoch, one with the
    leader and one with R followers, and of two rows of one epoch nobody can tell which may have been committed.
    """
    count = len(rule.followers & set(fenced))
    return count >= rule.r or (rule.leader in fenced and count >= rule.meet)


def uncovered(rules: Iterable[Rule], fenced: Collection[str]) -> list[str]:
    """Why `fenced` nodes do not suffice, one line for each rule that they do not cover."""
    return [
        f"rule {rule.name} needs {rule.r} of {sorted(rule.followers)} fenced, or {rule.meet} and its leader "
        f"{rule.leader}; {sorted(set(fenced) & rule.members) or 'none'} answered"
        for rule in rules
        if not covered(rule, fenced)
    ]


def next_rule(rules: Sequence[Rule], leader: str, epoch: int) -> Rule:
    """The rule of a new leader at `epoch`: the followers of the highest rule without it; the old leader leaves.

    If nobody is left the old leader stays, as the only follower. The old leader itself, reaffirmed, keeps all.
    """
    old = max(rules, key=lambda rule: rule.key)
    prior = min(rules, key=lambda rule: rule.key).key
    followers = old.followers - {leader} or old.members - {leader}
    return Rule(epoch, 0, leader, followers, write_quorum(len(followers)), prior, old.removed - followers - {leader})


def changed_followers(rule: Rule, followers: Iterable[str], removed: Collection[str] | None = None) -> Rule:
    """The same leader with other followers; `rule` must be committed. `removed`: as before, unless given.

    Raises RuleError where nothing would change.
    """
    names = frozenset(followers)
    out = frozenset(rule.removed if removed is None else removed) - names
    if (names, out) == (rule.followers, rule.removed):
        raise RuleError(f"rule {rule.name} has these followers already")
    return Rule(rule.epoch, rule.sub + 1, rule.leader, names, write_quorum(len(names)), rule.key, out)


def transition(old: Sequence[Rule], new: Rule) -> Need:
    """What the row of `new` waits for: every rule that it supersedes, and itself."""
    return combined([*(handover_need(rule, new.leader) for rule in old), final_need(new)])
