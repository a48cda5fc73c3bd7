"""The search: breadth first, so that a counterexample is a shortest one; and random runs, which go deeper."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from module_utils.devmentor_ha.rules import NOBODY

from .invariants import Violation, describe, settle
from .model import Label, Model
from .state import NAMES, NODES, NONE, Node, Renaming, State, need_of

WEIGHTS = {"crash": 0.2, "commit": 0.5, "promise to stop": 0.3, "decide": 4.0, "row": 3.0, "repoint": 3.0, "final": 3.0}


@dataclass
class Result:
    """How a search ended. `complete`: no state within the bounds was left out."""

    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    complete: bool = False
    violation: str = ""
    trace: list[tuple[Label, State]] = field(default_factory=list)


class Symmetry:
    """The representative of all states that differ by a swap of nodes which the first rule treats alike."""

    def __init__(self, followers: str) -> None:
        inside = [n for n in NODES[1:] if NAMES[n] in followers]
        outside = [n for n in NODES[1:] if NAMES[n] not in followers]
        self.groups = [group for group in (inside, outside) if len(group) > 1]
        self._renamings: dict[tuple[int, ...], Renaming] = {}

    def __call__(self, state: State) -> State:
        orders = [self._orders(state, group) for group in self.groups]
        best = None
        for chosen in itertools.product(*orders):
            to = list(NODES)
            for group, order in zip(self.groups, chosen, strict=True):
                for place, node in zip(group, order, strict=True):
                    to[node] = place
            renamed = self._renamed(state, tuple(to))
            if best is None or renamed < best:
                best = renamed
        return best or state

    def _orders(self, state: State, group: list[int]) -> list[tuple[int, ...]]:
        """The orders of a group by what does not depend on names: one, unless nodes look alike."""
        keyed = sorted((_look(state, n), n) for n in group)
        runs = [[n for _, n in run] for _, run in itertools.groupby(keyed, key=lambda pair: pair[0])]
        perms = [list(itertools.permutations(run)) for run in runs]
        return [tuple(itertools.chain(*parts)) for parts in itertools.product(*perms)]

    def _renamed(self, state: State, to: tuple[int, ...]) -> State:
        if to == tuple(NODES):
            return state
        if to not in self._renamings:
            self._renamings[to] = Renaming(to)
        return self._renamings[to].state(state)


def _look(state: State, n: int) -> tuple[Any, ...]:
    node = state.nodes[n]
    asked = tuple(len(c.answers[n]) for c in state.controllers)
    what = (len(node.wal), node.up, node.leads, node.epoch, node.by, node.fencing, node.branch)
    return (*what, bool(node.row), node.follows == NONE, asked)


def search(
    model: Model, seconds: float, check: Callable[[State], str] | None = None, every: int = 1, script: str = ""
) -> Result:
    """Breadth first, at most so long, from the initial state or from where a `script` leads.

    Visited states are kept as 64-bit hashes with their parent's. `check` judges each `every`-th state, "" is well.
    """
    began = time.monotonic()
    symmetry = Symmetry(model.bounds.followers)
    begin = follow(model, script)
    first = symmetry(begin[-1][1] if begin else model.bounds.initial())
    parents = {hash(first): 0}
    level, depth = [first], 0
    result = Result()

    def finish(violation: str = "", path: Sequence[int] = (), breaking: bool = False) -> Result:
        result.states, result.depth, result.seconds = len(parents), depth, time.monotonic() - began
        result.violation = violation
        if violation:
            result.trace = _replay(model, symmetry, begin, path)
            if breaking:
                result.violation = _break(model, result.trace)
        return result

    while level:
        depth += 1
        following = []
        for index, state in enumerate(level):
            if index % 64 == 0 and time.monotonic() - began > seconds:
                return finish()
            here = hash(state)
            if check and here % every == 0 and (wrong := check(state)):
                return finish(wrong, _path(parents, here))
            for _, step in model.steps(state):
                try:
                    after = symmetry(settle(state, step))
                except Violation as violation:
                    return finish(str(violation), _path(parents, here), breaking=True)
                key = hash(after)
                if key not in parents:
                    parents[key] = here
                    following.append(after)
        level = following
    result.complete = True
    return finish()


def walk(
    model: Model, seconds: float, seed: int, check: Callable[[State], str] | None = None, steps: float = math.inf
) -> Result:
    """Random runs to their end, one after the other, for so long or so many steps. `check` judges the end of each.

    In the result `states` counts steps and `depth` is the longest run.
    """
    began = time.monotonic()
    chance = random.Random(seed)
    result = Result()
    while time.monotonic() - began < seconds and result.states < steps:
        state, trace = model.bounds.initial(), []
        while True:
            options = list(model.steps(state))
            if not options:
                break
            weights = [
                WEIGHTS.get(label[0], 1.0) * (0.15 if after.left.attempts < state.left.attempts else 1.0)
                for label, after in options
            ]
            label, after = chance.choices(options, weights)[0]
            trace.append((label, after))
            try:
                after = settle(state, after)
            except Violation as violation:
                result.violation = str(violation)
                break
            if after == state:
                break
            state = after
            trace[-1] = (label, after)
            result.states += 1
            if len(trace) > 120:
                break
        if not result.violation and check:
            result.violation = check(state)
        result.depth = max(result.depth, len(trace))
        if result.violation:
            result.trace = trace
            break
    result.seconds = time.monotonic() - began
    return result


def _path(parents: dict[int, int], last: int) -> list[int]:
    path = []
    while last:
        path.append(last)
        last = parents[last]
    return path[::-1]


def follow(model: Model, script: str) -> list[tuple[Label, State]]:
    """The steps that a script names, one a line, as a trace shows them. Raises Violation and LookupError."""
    state, trace = model.bounds.initial(), []
    for line in script.strip().splitlines():
        named = [(label, after) for label, after in model.steps(state) if _name(label) == line.strip()]
        if not named:
            possible = sorted({_name(label) for label, _ in model.steps(state)})
            raise LookupError(f"no step {line.strip()!r} among {possible}")
        label, after = max(named, key=lambda step: step[1].left.attempts)  # rather goes on than begins a new attempt
        state = settle(state, after)
        trace.append((label, state))
    return trace


def _replay(
    model: Model, symmetry: Symmetry, begin: list[tuple[Label, State]], path: Sequence[int]
) -> list[tuple[Label, State]]:
    """The steps along a path of hashes, with the nodes' own names from beginning to end."""
    trace = list(begin)
    state = trace[-1][1] if trace else model.bounds.initial()
    for key in path[1:]:
        steps = ((label, settle(state, after)) for label, after in model.steps(state))
        label, state = next((label, after) for label, after in steps if hash(symmetry(after)) == key)
        trace.append((label, state))
    return trace


def _break(model: Model, trace: list[tuple[Label, State]]) -> str:
    """Adds the step that breaks an invariant, and says which."""
    state = trace[-1][1] if trace else model.bounds.initial()
    for label, after in model.steps(state):
        try:
            settle(state, after)
        except Violation as violation:
            trace.append((label, after))
            return str(violation)
    raise AssertionError("the trace does not lead to the violation")


def show(trace: list[tuple[Label, State]], first: State) -> str:
    """A trace for people: each step, and after it the nodes that it changed."""
    lines, before = [_nodes(first, None)], first
    for number, (label, state) in enumerate(trace, 1):
        lines += [f"{number:3} {_name(label)}", _nodes(state, before)]
        before = state
    return "\n".join(line for line in lines if line)


def _name(label: Label) -> str:
    what, *rest = label
    if what in ("promise", "promise to stop"):
        return f"controller {rest[0]} at epoch {rest[1]}: {NAMES[rest[2]]} makes its {what}"
    if what == "decide":
        return f"controller {rest[0]} at epoch {rest[1]} decides: {NAMES[rest[2]]} leads {describe(rest[3])}"
    if what in ("row", "final", "change"):
        return f"{NAMES[rest[0]]}: {what} {describe(rest[1])}"
    if what in ("repoint", "rewind", "rejoin"):
        return f"{what}: {NAMES[rest[1]]} follows {NAMES[rest[0]]}"
    return f"{NAMES[rest[0]]}: {what}"


def _nodes(state: State, before: State | None) -> str:
    changed = [n for n in NODES if before is None or state.nodes[n] != before.nodes[n]]
    return "\n".join(f"      {NAMES[n]} {_node(state.nodes[n])}" for n in changed)


def _node(node: Node) -> str:
    what = "leads" if node.leads else "alone" if node.follows == NONE else f"follows {NAMES[node.follows]}"
    need = "" if not node.leads else f", waits for {need_of(node.setting).setting if node.setting else NOBODY}"
    fencing = ", fence under way" if node.fencing else ""
    wal = " ".join(describe(number) for number in node.wal)
    return f"{'' if node.up else 'DOWN '}{what}{need}, promised {node.epoch}/{node.by}{fencing}: {wal}"
