"""I7: once all nodes are up and connected, the protocol by itself gets to a leader that acknowledges."""

from __future__ import annotations

from module_utils.devmentor_ha.rules import final_need

from .invariants import Violation, settle
from .model import Model, follows
from .state import IDLE, NAMES, NODES, Budget, State, entry_of, rows_of, setting_of

TRIES = 3


def recover(model: Model, state: State) -> str:
    """What goes wrong on the way back, "" if nothing does. No new faults, no new commits, no rivals."""
    state = state._replace(controllers=(IDLE, IDLE), left=Budget(0, 0, 0, 0, 0))
    try:
        for _ in range(TRIES):
            state = _settled(model, state)
            if healthy(state):
                return ""
            state = _failover(model, state)
        state = _settled(model, state)
    except Violation as violation:
        return f"on the way back: {violation}"
    return "" if healthy(state) else f"I7: after {TRIES} more attempts nobody can acknowledge a commit"


def healthy(state: State) -> bool:
    """Whether a leader with a committed rule has the followers to acknowledge, and has what was acknowledged."""
    for n in NODES:
        node = state.nodes[n]
        row = rows_of(node.wal)[-1]
        rule = entry_of(row).rule
        if not (node.up and node.leads and rule.leader == NAMES[n] and node.setting == setting_of(final_need(rule))):
            continue
        stream = [NAMES[f] for f in NODES if state.nodes[f].follows == n and follows(state.nodes, f)]
        if final_need(rule).met_by(stream) and set(state.acked) <= set(node.wal):
            return True
    return False


def _settled(model: Model, state: State) -> State:
    """Everything that goes on by itself has gone on: starts, fences under way, rows, repoints, rejoins, streaming."""
    while True:
        latest = max((entry_of(wal[-1]).rule for wal in state.committed), key=lambda rule: rule.key)
        for label, after in model.steps(state):
            if label[0] == "rejoin" and NAMES[label[1]] != latest.leader:
                continue  # its leader is superseded, as everybody can be asked now
            if label[0] not in ("promise", "decide"):
                state = settle(state, after)
                break
        else:
            return state


def _failover(model: Model, state: State) -> State:
    """One attempt by a controller that reaches every node."""
    epoch = 1 + max(max(node.epoch, entry_of(rows_of(node.wal)[-1]).rule.epoch) for node in state.nodes)
    state = state._replace(controllers=(IDLE._replace(epoch=epoch), IDLE))
    for kind in ("promise", "fenced", "decide"):
        while found := _first(model, state, kind):
            state = found
    return state._replace(controllers=(IDLE, IDLE))


def _first(model: Model, state: State, kind: str) -> State | None:
    for label, after in model.steps(state):
        if label[0] == kind:
            return settle(state, after)
    return None
