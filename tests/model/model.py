"""What may happen next in a state. Each step names itself, so that a trace reads like the protocol's document.

Left out because they change nothing that can be seen:
- messages: a step happens when its message arrives; one that is lost does not happen;
- a controller's death: one that does nothing any more is dead, and its place may be taken by a new attempt at any time;
- receiving apart from flushing: what was received and not flushed is lost with the receiver;
- reading the highest epoch: any epoch up to one above the highest may be tried, as by an attempt that read long ago.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from module_utils.devmentor_ha import election
from module_utils.devmentor_ha.rules import (
    Need,
    Rule,
    changed_followers,
    final_need,
    first_rule,
    transition,
)

from .state import (
    DEMOTING,
    FENCING,
    IDLE,
    NAMES,
    NODES,
    NONE,
    Budget,
    Commit,
    Controller,
    Node,
    Row,
    State,
    Wal,
    entry_of,
    need_of,
    newest_of,
    number_of,
    rows_of,
    setting_of,
)

Label = tuple[Any, ...]
MODES = {FENCING: (election.FOLLOWER, election.LEADER), DEMOTING: (election.DEMOTED, election.DEMOTED)}


@dataclass(frozen=True)
class Variant:
    """The protocol with one mistake; without any of them it is the protocol."""

    lsn_read_early: bool = False
    leader_answers_early: bool = False
    promise_lost_on_rewind: bool = False
    final_setting_early: bool = False
    acknowledges_before_row: bool = False
    row_needs_itself_only: bool = False
    lone_leader: bool = False
    repoint_from_lower_epoch: bool = False
    lead_ignores_fence: bool = False
    committed_by_its_setting: bool = False
    acknowledges_with_row: bool = False
    promise_lost_on_crash: bool = False
    demoted_not_weighed: bool = False
    no_start_guard: bool = False
    guard_keeps_stopped: bool = False
    joins_committed_only: bool = False
    rejoins_without_promise: bool = False


@dataclass(frozen=True)
class Bounds:
    """Where the search begins and how often each thing may happen in one run."""

    followers: str = "bcd"
    commits: int = 1
    attempts: int = 2
    crashes: int = 0
    changes: int = 0
    demotes: int = 0
    epochs: int = 3  # the highest epoch
    rewinds: bool = True  # rejoin of nodes that nobody fenced

    def initial(self) -> State:
        """Rule 1.0: a leads; the nodes outside the rule stream as well, and could join it."""
        rule = first_rule("a", self.followers)
        row = number_of(Row(rule, final_need(rule), ()))
        follower = Node((row,), 1, 0, 1, 0, 0, 0, 0, 1, 0)
        nodes = [follower._replace(leads=1, follows=NONE, setting=setting_of(final_need(rule)))]
        nodes += [follower] * (len(NAMES) - 1)
        budget = Budget(self.commits, self.attempts, self.crashes, self.changes, self.demotes)
        return State(tuple(nodes), (IDLE, IDLE), (), ((row,),), (), budget)


class Model:
    """The steps of one variant of the protocol."""

    def __init__(self, bounds: Bounds, variant: Variant | None = None) -> None:
        self.bounds = bounds
        self.variant = variant or Variant()
        self._choices: dict[Any, list[tuple[int, int]]] = {}
        self._changes: dict[tuple[int, frozenset[str]], int] = {}

    def steps(self, state: State) -> Iterator[tuple[Label, State]]:
        """Every step that is possible, with the state it leads to before `settle`."""
        nodes, left = state.nodes, state.left
        for n in NODES:
            node = nodes[n]
            if not node.up:
                yield from self._restart(state, n)
                continue
            if node.fencing:
                yield ("fenced", n), self._fenced(state, n)
            if node.leads:
                if left.commits:
                    entry = number_of(Commit(node.branch, n, len(node.wal)))
                    yield ("commit", n), _spend(_with(state, n, wal=(*node.wal, entry)), commits=1)
                yield from self._lead(state, n)
            elif follows(nodes, n) and len(nodes[node.follows].wal) > len(node.wal):
                yield ("flush", n), _with(state, n, wal=nodes[node.follows].wal[: len(node.wal) + 1])
            if self.bounds.rewinds:
                yield from self._rejoin(state, n)
            if left.crashes:
                yield ("crash", n), _spend(self._crashed(state, n), crashes=1)
        for c in range(len(state.controllers)):
            yield from self._control(state, c)

    # The controller: promise, fence, decide

    def _control(self, state: State, c: int) -> Iterator[tuple[Label, State]]:
        controller, left = state.controllers[c], state.left
        if controller.epoch:
            for n in NODES:
                yield from self._promise(state, c, n, controller)
            yield from self._decide(state, c)
        if left.attempts and (c == 0 or state.controllers[0].epoch or left.attempts < self.bounds.attempts):
            highest = max(max(node.epoch, newest_of(node.wal).epoch) for node in state.nodes)
            for epoch in range(2, min(highest + 1, self.bounds.epochs) + 1):
                for n in NODES:
                    yield from self._promise(_spend(state, attempts=1), c, n, Controller(epoch, IDLE.answers))

    def _promise(self, state: State, c: int, n: int, controller: Controller) -> Iterator[tuple[Label, State]]:
        """A fence or a demotion arrives: the node has durably promised, and has done nothing else yet."""
        node = state.nodes[n]
        if not node.up or node.epoch >= controller.epoch:
            return
        answers = controller.answers
        if self.variant.leader_answers_early if node.leads else self.variant.lsn_read_early:
            answers = _put(answers, n, (MODES[FENCING][node.leads], node.wal))
        after = _with(state, n, epoch=controller.epoch, by=c + 1, fencing=FENCING)
        controllers = _put(state.controllers, c, Controller(controller.epoch, answers))
        yield ("promise", c + 1, controller.epoch, n), after._replace(controllers=controllers)
        if state.left.demotes and node.leads:
            demoting = _with(after, n, fencing=DEMOTING)._replace(controllers=controllers)
            yield ("promise to stop", c + 1, controller.epoch, n), _spend(demoting, demotes=1)

    def _fenced(self, state: State, n: int) -> State:
        """The receiver is gone; or a leader waits for NOBODY and has no senders; or it has stopped. The answer."""
        node = state.nodes[n]
        after = _with(_leaves(state, n), n, fencing=0, follows=NONE, setting=0)
        if node.fencing == DEMOTING:
            after = _with(state, n, fencing=0, up=0)
        early = self.variant.leader_answers_early if node.leads else self.variant.lsn_read_early
        if early and node.fencing == FENCING:
            return after
        controller = state.controllers[node.by - 1]
        if controller.epoch != node.epoch:
            return after
        answers = _put(controller.answers, n, (MODES[node.fencing][node.leads], node.wal))
        return after._replace(controllers=_put(after.controllers, node.by - 1, Controller(node.epoch, answers)))

    def _decide(self, state: State, c: int) -> Iterator[tuple[Label, State]]:
        """The controller chooses, and the candidate takes the job and promotes itself."""
        controller = state.controllers[c]
        for candidate, row in sorted({pair for word in self._words(state) for pair in self.choices(controller, word)}):
            node = state.nodes[candidate]
            if not node.up or node.fencing or (node.epoch, node.by) != (controller.epoch, c + 1):
                continue
            entry: Row = entry_of(row)
            setting = 0
            if self.variant.acknowledges_before_row:
                setting = setting_of(entry.need)
            if self.variant.final_setting_early:
                setting = setting_of(final_need(entry.rule))
            if self.variant.lone_leader and len(entry.replaced[-1].followers) == 1:
                setting = setting_of(Need(0, frozenset()))
            branch = node.branch if node.leads else controller.epoch
            after = _with(state, candidate, leads=1, follows=NONE, setting=setting, branch=branch, row=row)
            after = after._replace(controllers=_put(after.controllers, c, IDLE))
            yield ("decide", c + 1, controller.epoch, candidate, row), after

    def _words(self, state: State) -> list[int]:
        """The rows that who answers may know to be committed, 0 for none: nodes remember what a leader told."""
        words = {0, *(wal[-1] for wal in state.committed)}
        if self.variant.committed_by_its_setting:
            for n in NODES:
                node = state.nodes[n]
                row = rows_of(node.wal)[-1]
                if node.leads and node.setting == setting_of(final_need(entry_of(row).rule)):
                    words.add(row)
        return sorted(words)

    def choices(self, controller: Controller, word: int) -> list[tuple[int, int]]:
        """(candidate, row) of every decision that the priorities of the nodes allow."""
        found = self._choices.get((controller, word))
        if found is None:
            committed = entry_of(word).rule if word else None
            answers = [
                election.Answer(NAMES[n], answer[0], reported(answer[1]), len(answer[1]), 1, committed)
                for n, answer in enumerate(controller.answers)
                if answer
            ]
            if self.variant.demoted_not_weighed:
                answers = [replace(a, lsn=0, rules=a.rules[:1]) if a.mode == election.DEMOTED else a for a in answers]
            chosen = set()
            for preferred in NAMES:
                try:
                    choice = election.choose(answers, controller.epoch, {preferred: 1})
                except election.Abort:
                    break
                need = self._need(choice.need, choice.rule)
                chosen.add((NAMES.index(choice.candidate), number_of(Row(choice.rule, need, choice.replaced))))
            found = self._choices[controller, word] = sorted(chosen)
        return found

    def _need(self, need: Need, rule: Rule) -> Need:
        return final_need(rule) if self.variant.row_needs_itself_only else need

    # The leader: its row, its followers, its setting

    def _lead(self, state: State, n: int) -> Iterator[tuple[Label, State]]:
        node = state.nodes[n]
        if node.row:
            entry: Row = entry_of(node.row)
            if node.row not in node.wal:  # also after a fence: the statement may be under way
                settings = {"setting": setting_of(entry.need)} if self.variant.acknowledges_with_row else {}
                yield ("row", n, node.row), _with(state, n, wal=(*node.wal, node.row), **settings)
            elif self.variant.lead_ignores_fence and not node.setting:
                yield ("final", n, node.row), _with(state, n, setting=setting_of(entry.need))
            if entry.rule.epoch == node.epoch:
                for f in NODES:
                    if f != n:
                        yield from self._repoint(state, n, f)
        row = rows_of(node.wal)[-1]
        rule = entry_of(row).rule
        if rule.leader != NAMES[n] or node.epoch > rule.epoch:
            return
        if not any(wal[-1] == row for wal in state.committed):
            return
        final = setting_of(final_need(rule))
        if node.setting != final:
            if not (self.variant.lone_leader and node.setting and not need_of(node.setting).count):
                yield ("final", n, row), _with(state, n, setting=final, row=0)
        elif state.left.changes and not node.row:
            for f in NODES:
                name = NAMES[f]
                names = rule.followers ^ {name}
                if f == n or not names or (name not in rule.followers and not follows(state.nodes, f)):
                    continue
                changed = self.change(row, rule, names)
                wal = (*node.wal, changed)
                setting = setting_of(entry_of(changed).need)
                yield ("change", n, changed), _spend(_with(state, n, wal=wal, setting=setting), changes=1)

    def change(self, row: int, rule: Rule, names: frozenset[str]) -> int:
        """The row of the same leader with other followers."""
        found = self._changes.get((row, names))
        if found is None:
            new = changed_followers(rule, names)
            found = self._changes[row, names] = number_of(Row(new, self._need(transition([rule], new), new), (rule,)))
        return found

    def _repoint(self, state: State, n: int, f: int) -> Iterator[tuple[Label, State]]:
        """The candidate takes a node that was fenced for its epoch, and rewinds it where it has diverged."""
        leader, node = state.nodes[n], state.nodes[f]
        if not node.up or node.fencing or node.follows == n or leader.fencing:
            return
        same = (node.epoch, node.by) == (leader.epoch, leader.by)
        if not (same or self.variant.repoint_from_lower_epoch):
            return
        if not node.leads and node.wal == leader.wal[: len(node.wal)]:
            yield ("repoint", n, f), _with(_leaves(state, f), f, follows=n)
        elif not self.variant.joins_committed_only:
            yield ("rewind", n, f), self._rewound(state, n, f)

    # Stopped nodes and those that must come back

    def _crashed(self, state: State, n: int) -> State:
        lost = {"epoch": 1, "by": 0} if self.variant.promise_lost_on_crash else {}
        return _with(state, n, up=0, row=0, **lost)

    def _restart(self, state: State, n: int) -> Iterator[tuple[Label, State]]:
        """The start guard."""
        node = state.nodes[n]
        if not node.leads and node.fencing:
            yield ("start", n), _with(_leaves(state, n), n, up=1, fencing=0, follows=NONE)
        elif not node.leads:
            yield ("start", n), _with(state, n, up=1)
        elif self.variant.no_start_guard or self._may_lead(state, n):
            yield ("start", n), _with(state, n, up=1, fencing=0)
        elif not self.variant.guard_keeps_stopped:
            yield ("start as standby", n), _with(state, n, up=1, leads=0, fencing=0, follows=NONE, setting=0)

    def _may_lead(self, state: State, n: int) -> bool:
        rule = newest_of(state.nodes[n].wal)
        if rule.leader != NAMES[n] or state.nodes[n].epoch > rule.epoch:
            return False
        agree = [f for f in NODES if NAMES[f] in rule.followers and state.nodes[f].epoch <= rule.epoch]
        return len(agree) >= rule.r

    def _rejoin(self, state: State, n: int) -> Iterator[tuple[Label, State]]:
        """A node comes to the leader of a committed rule, if it knows of nothing higher."""
        node = state.nodes[n]
        for other in NODES:
            leader = state.nodes[other]
            if other == n or not (leader.up and leader.leads and leader.setting) or node.fencing:
                continue
            if not node.leads and node.follows == other:
                continue
            row = rows_of(leader.wal)[-1]
            rule = entry_of(row).rule
            if rule.leader != NAMES[other] or leader.setting != setting_of(final_need(rule)):
                continue
            if not any(wal[-1] == row for wal in state.committed) or node.epoch > rule.epoch:
                continue
            promised = state
            if node.epoch < rule.epoch and not self.variant.rejoins_without_promise:
                promised = _with(state, n, epoch=leader.epoch, by=leader.by)
            yield ("rejoin", other, n), self._rewound(promised, other, n)

    def _rewound(self, state: State, n: int, f: int) -> State:
        """f follows n; what n does not have is dropped. pg_rewind leaves a node that must replay to n's end."""
        leader, node = state.nodes[n], state.nodes[f]
        changes: dict[str, Any] = {"leads": 0, "follows": n, "setting": 0, "row": 0, "branch": leader.branch}
        if node.leads or node.wal != leader.wal[: len(node.wal)]:
            changes["wal"] = leader.wal
            if self.variant.promise_lost_on_rewind:
                changes |= {"epoch": 1, "by": 0}  # as the data was copied
        return _with(_leaves(state, f), f, **changes)


def reported(wal: Wal) -> tuple[Rule, ...]:
    """The rows that a fenced node answers with: from the newest one's prior on."""
    rules = [entry_of(row).rule for row in rows_of(wal)]
    return tuple(rule for rule in rules if rule.key >= rules[-1].prior)


def follows(nodes: tuple[Node, ...], n: int) -> bool:
    """Whether a follower streams: from a running leader, whose WAL continues its own."""
    node = nodes[n]
    if not node.up or node.leads or node.follows == NONE:
        return False
    leader = nodes[node.follows]
    return bool(leader.up and leader.leads and node.wal == leader.wal[: len(node.wal)])


def _leaves(state: State, n: int) -> State:
    """n follows its leader no longer. Its reports of entries that wait are remembered: they may still be under way."""
    node = state.nodes[n]
    if node.leads or node.follows == NONE:
        return state
    known = {wal[-1] for wal in state.committed}
    waiting = [number for number in node.wal[1:] if number not in state.acked and number not in known]
    if not waiting:
        return state
    return state._replace(told=tuple(sorted({*state.told, *((number, n, node.follows) for number in waiting)})))


def _put(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _with(state: State, n: int, **changes: Any) -> State:
    return state._replace(nodes=_put(state.nodes, n, state.nodes[n]._replace(**changes)))


def _spend(state: State, **what: int) -> State:
    return state._replace(left=state.left._replace(**{name: getattr(state.left, name) - 1 for name in what}))
