"""What must hold after each step (docs/postgres-ha-protocol.md, "Invariants").

Acknowledging is eager: a commit counts as acknowledged as soon as the nodes that ever reported it would satisfy the
leader's setting. That is the worst case of every delivery: a report sent before a fence may arrive after it. A rule
counts as committed as soon as its row is on as many nodes as it waits for, if its leader has not promised a higher
epoch: it would write the final setting next.
"""

from __future__ import annotations

from .state import NAMES, NODES, Commit, Node, Row, State, Wal, entry_of, met, newest_of, rows_of, setting_of


class Violation(Exception):
    """An invariant that a step broke."""


def reporters(state: State, leader: int, number: int, position: int) -> int:
    """The nodes that have ever told this leader that they hold the entry, as a bit mask."""
    mask = 0
    for n in NODES:
        node = state.nodes[n]
        if node.follows == leader and len(node.wal) > position and node.wal[position] == number:
            mask |= 1 << n
    for entry, teller, told in state.told:
        if entry == number and told == leader:
            mask |= 1 << teller
    return mask


def settle(before: State, state: State) -> State:
    """`state` with what its nodes now acknowledge and commit. Raises Violation."""
    nodes = state.nodes
    for old, new in zip(before.nodes, nodes, strict=True):
        if (new.epoch, new.by) != (old.epoch, old.by) and new.epoch <= old.epoch:
            who = NAMES[before.nodes.index(old)]
            raise Violation(f"I4: the promise of {who} went from {old.epoch} to {new.epoch}")
        if old.wal != new.wal[: len(old.wal)]:
            _droppable(before, old, new)
    acked, committed = state.acked, state.committed
    for leader in NODES:
        if nodes[leader].leads and nodes[leader].up and nodes[leader].setting:
            acked = _acknowledge(state, leader, acked)
    known = {wal[-1] for wal in committed}
    for leader in NODES:
        wal = nodes[leader].wal
        for position in range(len(wal) - 1, 0, -1):
            number = wal[position]
            if number in known:
                break
            row = entry_of(number)
            if type(row) is not Row or row.rule.leader != NAMES[leader] or nodes[leader].epoch > row.rule.epoch:
                continue
            if met(setting_of(row.need), reporters(state, leader, number, position)):
                known.add(number)
                committed = _commit(wal, position, committed, acked)
    if acked is state.acked and committed is state.committed:
        return state
    told = tuple(pair for pair in state.told if pair[0] not in acked and pair[0] not in known)
    return state._replace(acked=acked, committed=committed, told=told)


def _droppable(before: State, old: Node, new: Node) -> None:
    """A rewind must not drop what was acknowledged from a node that the last committed rule counts on."""
    known = {wal[-1] for wal in before.committed}
    dropped = [number for number in old.wal if number not in new.wal and (number in before.acked or number in known)]
    who = NAMES[before.nodes.index(old)]
    if dropped and who in max((entry_of(number).rule for number in known), key=lambda rule: rule.key).members:
        what = ", ".join(describe(number) for number in dropped)
        raise Violation(f"I1: {who} is rewound and drops {what}, which was acknowledged")


def _acknowledge(state: State, leader: int, acked: tuple[int, ...]) -> tuple[int, ...]:
    node = state.nodes[leader]
    for position in range(len(node.wal) - 1, 0, -1):
        number = node.wal[position]
        if number in acked:
            return acked
        told = reporters(state, leader, number, position)
        if met(node.setting, told):
            if not told:
                raise Violation(f"I1: {NAMES[leader]} acknowledges {describe(number)} with one copy")
            new = [n for n in node.wal[: position + 1] if type(entry_of(n)) is Commit and n not in acked]
            for number in new:
                _allowed(state, leader, number)
            return tuple(sorted([*acked, *new])) if new else acked
    return acked


def _allowed(state: State, leader: int, number: int) -> None:
    """Whether the leader may acknowledge this entry of its WAL now."""
    wal = state.nodes[leader].wal
    rule = newest_of(wal)
    what = f"{NAMES[leader]} acknowledges {describe(number)} under rule {rule.name}"
    for node in NODES:
        other = state.nodes[node]
        decided = [row for row in rows_of(other.wal) if row != other.row] + ([other.row] if other.row else [])
        for row in decided:
            entry = entry_of(row)
            before = other.wal[: other.wal.index(row)] if row in other.wal else other.wal
            if rule in entry.replaced and entry.rule.epoch > rule.epoch and number not in before:
                by = f"rule {entry.rule.name} of {entry.rule.leader}"
                raise Violation(f"I3: {what}, which {by} has covered without it")
    latest = max(state.committed, key=lambda wal: entry_of(wal[-1]).rule.key, default=None)
    if latest is not None and latest[-1] not in wal and number not in latest:
        raise Violation(f"I6: {what} after rule {entry_of(latest[-1]).rule.name} was committed without it")


def _commit(wal: Wal, position: int, committed: tuple[Wal, ...], acked: tuple[int, ...]) -> tuple[Wal, ...]:
    row: Row = entry_of(wal[position])
    for other in committed:
        rule = entry_of(other[-1]).rule
        if rule.key == row.rule.key:
            raise Violation(f"I2: rule {rule.name} is committed by {rule.leader} and by {row.rule.leader}")
    name = f"rule {row.rule.name} of {row.rule.leader}"
    latest = max((entry_of(other[-1]).rule.key for other in committed), default=(0, 0))
    lost = [number for number in acked if number not in wal]
    if lost and row.rule.key > latest:
        raise Violation(f"I1: {name} is committed without the acknowledged {', '.join(map(describe, lost))}")
    for other in committed:
        rule = entry_of(other[-1]).rule
        if (other[-1] not in wal) if rule.key < row.rule.key else (wal[position] not in other):
            raise Violation(f"I2: {name} and rule {rule.name} of {rule.leader} are committed, neither with the other")
    return tuple(sorted([*committed, wal[: position + 1]]))


def describe(number: int) -> str:
    """An entry for a trace: `x2@b/2` is a client's commit at LSN 2 by b on the branch of epoch 2."""
    entry = entry_of(number)
    if type(entry) is Row:
        rule = entry.rule
        return f"[{rule.name} {rule.leader}>{''.join(sorted(rule.followers))}]"
    return f"x{entry.position}@{NAMES[entry.leader]}/{entry.branch}"
