"""The state of the model: tuples of small integers, so that it hashes and compares fast.

A node is its index into NAMES. A WAL is a tuple of entry numbers, an entry being a Commit or a Row; its length is the
LSN. The same number stands for the same entry after the same prefix. A setting is the number of a Need; 0 is NOBODY.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from module_utils.devmentor_ha.rules import NOBODY, Need, Rule

NAMES = ("a", "b", "c", "d")
NODES = range(len(NAMES))
NONE = 9  # no node
FENCING, DEMOTING = 1, 2

Wal = tuple[int, ...]


class Commit(NamedTuple):
    """A client's transaction: the branch (the epoch whose promotion began it), who wrote it, where."""

    branch: int
    leader: int
    position: int


class Row(NamedTuple):
    """A rule row, what it waits for, and the rules that it supersedes."""

    rule: Rule
    need: Need
    replaced: tuple[Rule, ...]


class Node(NamedTuple):
    wal: Wal
    up: int
    leads: int  # data of a leader (1) or of a follower (0)
    epoch: int  # promise: epoch ...
    by: int  # ... and controller
    follows: int  # primary_conninfo
    setting: int  # synchronous_standby_names
    fencing: int  # promised, and the fence (FENCING) or the demotion (DEMOTING) not carried out yet
    branch: int  # the timeline's identity: the epoch of the promotion that began it
    row: int  # the lead job: the rule row that this node was told to commit, 0 without a job


class Controller(NamedTuple):
    """One attempt; epoch 0 is none. `answers`: for each node () or (mode, WAL) as it answered."""

    epoch: int
    answers: tuple[tuple[Any, ...], ...]


IDLE = Controller(0, ((),) * len(NAMES))


class Budget(NamedTuple):
    """How often each may still happen."""

    commits: int
    attempts: int
    crashes: int
    changes: int  # followers added or removed by the leader
    demotes: int


class State(NamedTuple):
    nodes: tuple[Node, ...]
    controllers: tuple[Controller, ...]
    acked: tuple[int, ...]  # ghost: client commits that were or could have been acknowledged
    committed: tuple[Wal, ...]  # ghost: for each committed rule the WAL up to its row
    told: tuple[tuple[int, int, int], ...]  # ghost: (entry, node, leader) reported before the node left that leader
    left: Budget


_entries: list[Any] = [None]
_entry_numbers: dict[Any, int] = {}
_needs: list[Need] = [Need(1, frozenset({NOBODY}))]
_need_numbers: dict[Need, int] = {_needs[0]: 0}


def number_of(entry: Commit | Row) -> int:
    found = _entry_numbers.get(entry)
    if found is None:
        found = _entry_numbers[entry] = len(_entries)
        _entries.append(entry)
    return found


def entry_of(number: int) -> Any:
    return _entries[number]


def setting_of(need: Need) -> int:
    found = _need_numbers.get(need)
    if found is None:
        found = _need_numbers[need] = len(_needs)
        _needs.append(need)
    return found


def need_of(setting: int) -> Need:
    return _needs[setting]


@lru_cache(None)
def names_of(mask: int) -> frozenset[str]:
    return frozenset(NAMES[node] for node in NODES if mask >> node & 1)


@lru_cache(None)
def met(setting: int, mask: int) -> bool:
    return _needs[setting].met_by(names_of(mask))


@lru_cache(None)
def rows_of(wal: Wal) -> tuple[int, ...]:
    """The rule rows in a WAL, oldest first."""
    return tuple(number for number in wal if type(_entries[number]) is Row)


@lru_cache(None)
def newest_of(wal: Wal) -> Rule:
    rule: Rule = _entries[rows_of(wal)[-1]].rule
    return rule


# Symmetry: nodes that play the same part in the first rule may be swapped.


class Renaming:
    """Swaps nodes: `to[i]` is the new index of node i."""

    def __init__(self, to: tuple[int, ...]) -> None:
        self.to = to
        self.at = sorted(range(len(to)), key=lambda node: to[node])
        self.names = {NAMES[node]: NAMES[to[node]] for node in range(len(to))}
        self.target = [*to, *range(len(to), NONE + 1)]
        self._numbers: dict[int, int] = {}
        self._settings: dict[int, int] = {}
        self._wals: dict[Wal, Wal] = {}
        self._nodes: dict[Node, Node] = {}
        self._controllers: dict[Controller, Controller] = {}

    def rule(self, rule: Rule) -> Rule:
        followers = frozenset(self.names[name] for name in rule.followers)
        return Rule(rule.epoch, rule.sub, self.names[rule.leader], followers, rule.w, rule.prior)

    def need(self, need: Need) -> Need:
        return Need(need.count, frozenset(self.names.get(name, name) for name in need.among))

    def number(self, number: int) -> int:
        found = self._numbers.get(number)
        if found is None:
            entry = _entries[number]
            if entry is None:
                found = 0
            elif type(entry) is Row:
                replaced = tuple(sorted((self.rule(rule) for rule in entry.replaced), key=lambda r: (r.key, r.leader)))
                found = number_of(Row(self.rule(entry.rule), self.need(entry.need), replaced))
            else:
                found = number_of(Commit(entry.branch, self.to[entry.leader], entry.position))
            self._numbers[number] = found
        return found

    def wal(self, wal: Wal) -> Wal:
        found = self._wals.get(wal)
        if found is None:
            found = self._wals[wal] = tuple(self.number(number) for number in wal)
        return found

    def setting(self, setting: int) -> int:
        found = self._settings.get(setting)
        if found is None:
            found = self._settings[setting] = setting_of(self.need(_needs[setting]))
        return found

    def node(self, node: Node) -> Node:
        found = self._nodes.get(node)
        if found is None:
            found = self._nodes[node] = node._replace(
                wal=self.wal(node.wal),
                follows=self.target[node.follows],
                setting=self.setting(node.setting),
                row=self.number(node.row),
            )
        return found

    def controller(self, controller: Controller) -> Controller:
        found = self._controllers.get(controller)
        if found is None:
            answers = tuple(
                (controller.answers[i][0], self.wal(controller.answers[i][1])) if controller.answers[i] else ()
                for i in self.at
            )
            found = self._controllers[controller] = Controller(controller.epoch, answers)
        return found

    def state(self, state: State) -> State:
        nodes = state.nodes
        told = [(self.number(number), self.to[node], self.to[leader]) for number, node, leader in state.told]
        return State(
            tuple([self.node(nodes[i]) for i in self.at]),
            tuple([c if c is IDLE else self.controller(c) for c in state.controllers]),
            tuple(sorted([self.number(number) for number in state.acked])),
            tuple(sorted([self.wal(wal) for wal in state.committed])),
            tuple(sorted(told)),
            state.left,
        )
