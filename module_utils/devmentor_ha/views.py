"""One agent's status (docs/postgres-ha-protocol.md, "The agents' API"), read strictly: what is missing, or of another
kind than it should be, makes the whole status unreadable rather than good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .rules import Rule, RuleError

STALE_S = 5.0
"""What an agent last saw longer ago than this counts as not seen."""

DECISIONS = ("failover", "switchover", "reaffirm")
"""What `acting` begins with while a leader is chosen."""


class Unreadable(Exception):
    """Not a status; the message says what is wrong with it."""


@dataclass(frozen=True)
class NodeView:
    """A PostgreSQL node. Times are seconds since 1970 by its own clock; `server` is its status' `postgres`."""

    name: str
    now: float
    observe_only: bool
    paused_until: float
    pause_reason: str
    acting: str
    promise: int
    promise_age_s: float
    controller: str
    rule: Rule | None
    committed: Rule | None
    leading: Rule | None
    committing: Rule | None
    following: str
    suspects: str
    suspicion: str
    unwell: str
    writes_blocked: bool
    state: str
    server: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, status: Any) -> NodeView:
        """Raises Unreadable."""
        try:
            _is_of(name, status)
            promise, suspects, server = status["promise"], status["suspects"], status["postgres"]
            now = _number(status["now"])
            state = _text(server["state"])
            if state == "running":
                _check_server(server)
            return cls(
                name=name,
                now=now,
                observe_only=_flag(status["observe_only"]),
                paused_until=_number(status["paused"]["until"]),
                pause_reason=_text(status["paused"]["reason"]),
                acting=_text(status["acting"]),
                promise=_whole(promise["epoch"]),
                promise_age_s=now - _number(promise["at"]),
                controller=_text(promise["controller"]),
                rule=_rule(status["rule"]),
                committed=_rule(status["committed"]),
                leading=_own(name, _rule(status["leading"])),
                committing=_rule(status["committing"]),
                following=_text(status["following"]["leader"]),
                suspects="" if suspects is None else _name(suspects["leader"]),
                suspicion="" if suspects is None else _text(suspects["reason"]),
                unwell=_text(status["unwell"]),
                writes_blocked=_flag(status["writes_blocked"]),
                state=state,
                server=server,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuleError) as error:
            raise Unreadable(_said(error)) from error

    @property
    def runs(self) -> bool:
        """Whether its agent has just seen its server run."""
        return self.state == "running" and bool(self.server["age_s"] < STALE_S)

    def hears(self, leader: str) -> bool:
        """Whether it streams from this leader, and does not suspect it."""
        return self.runs and self.server["streaming"] and self.following == leader and not self.suspects

    @property
    def decides(self) -> bool:
        """Whether its agent is choosing a leader."""
        return self.acting.startswith(DECISIONS)

    def brief(self) -> dict[str, Any]:
        """For tables and facts."""
        if not self.runs:
            role = self.state if self.state != "running" else "silent"
        else:
            role = "leader" if self.leading else "follower" if self.server["in_recovery"] else "primary"
        return {
            "role": role,
            "promise": self.promise,
            "rule": self.rule.name if self.rule else "",
            "committed": self.committed.name if self.committed else "",
            "timeline": self.server.get("timeline"),
            "lsn": self.server.get("lsn"),
            "streaming": bool(self.server.get("streaming")),
            "following": self.following,
            "acting": self.acting,
            "suspects": self.suspects,
            "paused": self.paused_until > self.now,
        }


@dataclass(frozen=True)
class PoolerView:
    """A PgBouncer. `follows`: (epoch, sub); `target`: the address of that rule's leader. Times as in NodeView."""

    name: str
    now: float
    observe_only: bool
    paused_until: float
    pause_reason: str
    state: str
    age_s: float
    follows: tuple[int, int]
    leader: str
    target: str
    databases: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, name: str, status: Any) -> PoolerView:
        """Raises Unreadable."""
        try:
            _is_of(name, status)
            pooler = status["pooler"]
            databases = {
                _text(database): {"paused": _flag(entry["paused"]), "host": _text(entry["host"])}
                for database, entry in pooler["databases"].items()
            }
            return cls(
                name,
                _number(status["now"]),
                _flag(status["observe_only"]),
                _number(status["paused"]["until"]),
                _text(status["paused"]["reason"]),
                _text(pooler["state"]),
                _positive(pooler["age_s"]),
                (_whole(pooler["epoch"]), _whole(pooler["sub"])),
                _text(pooler["leader"]),
                _text(pooler["target"]),
                databases,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreadable(_said(error)) from error

    @property
    def runs(self) -> bool:
        return self.state == "running" and self.age_s < STALE_S

    @property
    def complete(self) -> bool:
        """Whether it has all three entries of one database: for writing, for reading, for sessions."""
        return any(set(self.databases) == {name, f"{name}_ro", f"{name}_session"} for name in self.databases)

    def brief(self) -> dict[str, Any]:
        """For tables and facts."""
        return {
            "state": self.state,
            "rule": f"{self.follows[0]}.{self.follows[1]}",
            "leader": self.leader,
            "target": self.target,
            "paused": sorted(name for name, entry in self.databases.items() if entry["paused"]),
        }


def _is_of(name: str, status: Any) -> None:
    if status["node"] != name:
        raise ValueError(f"it is of {status['node']!r}")


def _check_server(server: Mapping[str, Any]) -> None:
    """What is read of a running server later, so that it can be read without care."""
    _positive(server["age_s"]), _number(server["timeline"]), _number(server["lsn"])
    _text(server["synchronous_standby_names"])
    if not isinstance(server["replication"], list) or not isinstance(server["slots"], list):
        raise TypeError("replication or slots is no list")
    _flag(server["in_recovery"]), _flag(server["streaming"]), _flag(server["archive"]["failed_last"])
    for row in server["replication"]:
        _text(row["name"]), _text(row["state"])
        if row["lag_bytes"] is not None:
            _number(row["lag_bytes"])
    for slot in server["slots"]:
        _text(slot["name"]), _flag(slot["active"])
        if slot["wal_status"] is not None:
            _text(slot["wal_status"])


def _rule(entry: Any) -> Rule | None:
    if entry is None:
        return None
    rule = Rule.from_dict(entry)
    if any(entry[key] != value for key, value in rule.as_dict().items()):
        raise RuleError(f"{dict(entry)!r} is read as another rule")  # from_dict takes what can be converted
    return rule


def _own(name: str, rule: Rule | None) -> Rule | None:
    if rule is not None and rule.leader != name:
        raise ValueError(f"it leads rule {rule.name}, which is {rule.leader}'s")
    return rule


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _name(value: Any) -> str:
    if not _text(value):
        raise ValueError("a name is empty")
    return str(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return value


def _positive(value: Any) -> float:
    if _number(value) < 0:
        raise ValueError(f"{value!r} is negative")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} is no whole number of 0 or more")
    return value


def _said(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)
