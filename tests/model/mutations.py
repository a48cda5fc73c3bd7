"""Mistakes, each of which the search must find.

A script leads to where the mistake matters, so that this takes seconds; what happens then is searched for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from module_utils.devmentor_ha import election, rules

from .explore import Result, search
from .model import Bounds, Model, Variant
from .recovery import recover

Patch = tuple[Any, str, Any]


def _leader_alone(rule: rules.Rule, fenced: Collection[str]) -> bool:
    return rule.leader in fenced or len(rule.followers & set(fenced)) >= rule.r


def _of_highest(answers: list[election.Answer], known: list[rules.Rule]) -> list[election.Answer]:
    return [a for a in answers if a.mode != election.DEMOTED and a.node in known[-1].members]


def _meets_fences_only(old: rules.Rule, leader: str) -> rules.Need:
    if leader == old.leader:
        return rules.Need(max(old.meet, old.w), old.followers)
    return rules.Need(old.meet - (leader in old.followers), old.followers - {leader})


@dataclass(frozen=True)
class Mutation:
    """`breaks`: the invariants of which one must be found broken."""

    what: str
    breaks: str
    bounds: Bounds
    variant: Variant = field(default_factory=Variant)
    patches: tuple[Patch, ...] = ()
    script: str = ""
    recovery: bool = False

    def search(self, seconds: float) -> Result:
        with ExitStack() as stack:
            for target, name, value in self.patches:
                stack.enter_context(mock.patch.object(target, name, value))
            model = Model(self.bounds, self.variant)
            check: Callable[[Any], str] | None = (lambda state: recover(model, state)) if self.recovery else None
            return search(model, seconds, check, script=self.script)


def fence(controller: int, epoch: int, nodes: str) -> str:
    promises = [f"controller {controller} at epoch {epoch}: {node} makes its promise" for node in nodes]
    return "\n".join([*promises, *(f"{node}: fenced" for node in nodes), ""])


def quick(followers: str, **more: Any) -> Bounds:
    """Bounds without rejoin, which most mistakes do not need."""
    return Bounds(followers, **{"attempts": 1, "epochs": 2, "rewinds": False, **more})


TWO: dict[str, Any] = {"attempts": 2, "epochs": 3}

MUTATIONS = (
    Mutation("the LSN is read before the receiver is gone", "I1 I3", quick("bcd"), Variant(lsn_read_early=True)),
    Mutation("a leader is fenced, but its senders run", "I1 I3", quick("bc"), Variant(leader_answers_early=True)),
    Mutation("R is 1", "I1 I3", quick("bcd"), patches=((rules, "fence_quorum", lambda _: 1),)),
    Mutation(
        "the candidate is chosen by LSN alone",
        "I1",
        quick("bc", commits=3, **TWO),
        patches=((election.Answer, "newest", (0, 0)),),
        script=fence(1, 2, "bc")
        + """controller 1 at epoch 2 decides: b leads [2.0 b>c]
        b: row [2.0 b>c]
        repoint: c follows b
        c: flush
        a: commit
        a: commit
        """
        + fence(2, 3, "abc"),
    ),
    Mutation(
        "the promise is overwritten by rewind",
        "I4",
        quick("b"),
        Variant(promise_lost_on_rewind=True),
        script=fence(1, 2, "ab"),
    ),
    Mutation("the promise is lost in a crash", "I4", quick("b", crashes=1), Variant(promise_lost_on_crash=True)),
    Mutation(
        "the final setting is written before the row is acknowledged",
        "I1 I3",
        quick("bcd", commits=3, **TWO),
        Variant(final_setting_early=True),
        script="a: commit\na: commit\nd: flush\nd: flush\n"
        + fence(1, 2, "bc")
        + "controller 1 at epoch 2 decides: b leads [2.0 b>cd]\nrepoint: c follows b\nb: commit\nc: flush\n",
    ),
    Mutation(
        "a new leader acknowledges before its row is on its quorum (`combined` set before the promotion)",
        "I1 I3",
        quick("bcd", commits=3, **TWO),
        Variant(acknowledges_before_row=True),
        script="a: commit\na: commit\nd: flush\nd: flush\n"
        + fence(1, 2, "bc")
        + "controller 1 at epoch 2 decides: b leads [2.0 b>cd]\nrepoint: c follows b\nb: commit\nc: flush\n",
    ),
    Mutation(
        "the row waits for its own rule's followers only",
        "I1 I3",
        quick("bcd", changes=1),
        Variant(row_needs_itself_only=True),
        script="a: change [1.1 a>bc]\n" + fence(1, 2, "cd"),
    ),
    Mutation(
        "a rule counts as committed because its leader's setting looks final",
        "I1",
        quick("bc", changes=1),
        Variant(committed_by_its_setting=True),
        script="a: commit\nc: flush\na: change [1.1 a>b]\n" + fence(1, 2, "b"),
    ),
    Mutation("without a follower left the leader waits for nobody", "I1 I3", quick("b"), Variant(lone_leader=True)),
    Mutation(
        "a follower is repointed by a lower epoch than it promised",
        "I1 I6",
        quick("bcd", **TWO),
        Variant(repoint_from_lower_epoch=True),
        script=fence(1, 2, "bc")
        + "controller 1 at epoch 2 decides: b leads [2.0 b>cd]\n"
        + fence(2, 3, "cd")
        + "controller 2 at epoch 3 decides: d leads [3.0 d>bc]\n",
    ),
    Mutation(
        "the candidate goes on after a fence for a higher epoch",
        "I1 I3 I6",
        quick("bcd", **TWO),
        Variant(lead_ignores_fence=True),
        script=fence(1, 2, "bc")
        + "controller 1 at epoch 2 decides: b leads [2.0 b>cd]\nrepoint: c follows b\n"
        + fence(2, 3, "bd")
        + "controller 2 at epoch 3 decides: d leads [3.0 d>bc]\n",
    ),
    Mutation("the start guard is off", "I1 I3", quick("bc", demotes=1), Variant(no_start_guard=True)),
    Mutation("a demoted leader's WAL counts not", "I1 I3", quick("bc", demotes=1), Variant(demoted_not_weighed=True)),
    Mutation(
        "a node rejoins without promising the leader's epoch",
        "I1",
        Bounds("bcd", commits=0, changes=1, **TWO),
        Variant(rejoins_without_promise=True),
        script=fence(1, 2, "abc")
        + "controller 1 at epoch 2 decides: c leads [2.0 c>bd]\n"
        + fence(2, 3, "bd")
        + "controller 2 at epoch 3 decides: d leads [3.0 d>bc]\nd: row [3.0 d>bc]\nrepoint: b follows d\nb: flush\n"
        + "d: final [3.0 d>bc]\nrejoin: a follows d\nd: change [3.1 d>abc]\n",
    ),
    Mutation(
        "a leader covers its rule alone",
        "I1 I2",
        quick("bcd", commits=2, attempts=3, epochs=3),
        patches=((rules, "covered", _leader_alone),),
        script=fence(1, 2, "a")
        + fence(2, 2, "bc")
        + """controller 1 at epoch 2 decides: a leads [2.0 a>bcd]
        controller 2 at epoch 2 decides: b leads [2.0 b>cd]
        a: commit
        a: commit
        a: row [2.0 a>bcd]
        b: row [2.0 b>cd]
        repoint: c follows b
        c: flush
        """,
    ),
    Mutation(
        "the row meets R followers, but not the old leader with F - R + 1",
        "I2",
        quick("bcd", commits=0, changes=1, **TWO),
        patches=((rules, "handover_need", _meets_fences_only),),
        script="a: change [1.1 a>bc]\nd: flush\nb: flush\n"
        + fence(1, 2, "abd")
        + "controller 1 at epoch 2 decides: d leads [2.0 d>bc]\n"
        + fence(2, 3, "ac")
        + "controller 2 at epoch 3 decides: a leads [3.0 a>bc]\n",
    ),
    Mutation(
        "only members of the highest rule may lead",
        "I1 I3",
        quick("bc", changes=1, **TWO),
        patches=((election, "eligible_of", _of_highest),),
        script="a: commit\nc: flush\na: change [1.1 a>b]\nc: flush\n"
        + fence(1, 2, "bc")
        + "controller 1 at epoch 2 decides: b leads [2.0 b>a]\nb: row [2.0 b>a]\n"
        + fence(2, 3, "ab"),
    ),
    Mutation(
        "nobody joins a leader before its rule is committed",
        "I7",
        quick("b"),
        Variant(joins_committed_only=True),
        recovery=True,
    ),
    Mutation(
        "data of a leader that may not lead stays stopped",
        "I7",
        quick("b", crashes=1),
        Variant(guard_keeps_stopped=True),
        recovery=True,
    ),
)
