"""What `pretended.py` puts around an agent on its own host: time, PostgreSQL, PgBouncer."""

from __future__ import annotations

import asyncio
import re
import selectors
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from devmentor.pgagent.postgres import OBSERVE, RULES
from devmentor.pgagent.sql import Silent
from devmentor_ha.rules import Rule, final_need, first_rule
from devmentor_ha.textfiles import format_auto_conf, parse_auto_conf
from tests.unit.ha import statuses
from tests.unit.ha.statuses import LSN, NODES

FIRST = first_rule("pg1", NODES[1:])

# Time


class Clock:
    """Seconds that nobody waits for."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return statuses.NOW + self.now


CLOCK = Clock()


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(10 if timeout is None else 0)
        if timeout is None and not ready:
            raise RuntimeError("the test waits for something that nobody will do")
        if not ready and timeout:
            CLOCK.now += max(timeout, 0)
        return ready


class PretendedTime(asyncio.SelectorEventLoop):
    """An event loop on `CLOCK`."""

    def __init__(self) -> None:
        CLOCK.now = Clock.now
        super().__init__(_Selector())

    def time(self) -> float:
        return CLOCK.now


# PostgreSQL of this host


def control_data(timeline: int = 1, state: str = "shut down") -> dict[str, str]:
    """As pg_controldata prints it."""
    return {
        "Latest checkpoint location": f"0/{LSN:X}",
        "Latest checkpoint's TimeLineID": str(timeline),
        "Database cluster state": state,
    }


def replayed_to(lsn: int, timeline: int = 1) -> dict[str, str]:
    """A stopped standby's, whose WAL was replayed to `lsn` since its last checkpoint."""
    return control_data(timeline, "shut down in recovery") | {
        "Minimum recovery ending location": f"0/{lsn:X}",
        "Min recovery ending loc's timeline": str(timeline),
    }


@dataclass
class Standby:
    """A follower in the leader's pg_stat_replication. `flushed`: an LSN; None for one that is always level."""

    state: str = "streaming"
    flushed: int | None = None
    lag_bytes: int = 0


@dataclass
class Server:
    """What the agent's statements, signals and programs do to a server, and what they answer."""

    data: Path
    journal: list[str]
    in_recovery: bool
    rules: list[Rule]
    pid: int | None = 4711
    silent: bool = False
    starts: bool = True  # whether systemd and the guard let it start
    activating: bool = False  # a start of systemd's is under way
    started_at: float = Clock.now
    job: str = ""  # or waits, for a stop
    streams: bool = True  # whether a leader that it is connected to has the WAL for it
    receiver: int | None = None
    senders: list[int] = field(default_factory=list)
    readers_hold_up: bool = False
    timeline: int = 1
    checkpoint_timeline: int = 1
    lsn: int = LSN
    standbys: dict[str, Standby] = field(default_factory=dict)
    slots: set[str] = field(default_factory=set)
    control: dict[str, str] = field(default_factory=lambda: control_data())
    programs: dict[str, int] = field(default_factory=dict)  # exit status, 0 where it is not told
    applied: dict[str, str] = field(default_factory=dict)
    before: dict[str, Callable[[], Any]] = field(default_factory=dict)  # part of a statement -> called first
    _receivers: int = 5000

    @property
    def conf(self) -> dict[str, str]:
        path = self.data / "postgresql.auto.conf"
        return parse_auto_conf(path.read_text()) if path.exists() else {}

    def write_conf(self, settings: dict[str, str]) -> None:
        (self.data / "postgresql.auto.conf").write_text(format_auto_conf(settings))

    def take_up(self) -> None:
        """A reload or a start."""
        now = self.conf
        for name in sorted({*now, *self.applied}):
            if now.get(name) != self.applied.get(name):
                self.journal.append(f"{name} = {now.get(name)}")
        connects = bool(now.get("primary_conninfo")) and now["primary_conninfo"] != self.applied.get("primary_conninfo")
        self.applied = now
        if self.in_recovery and (connects or (now.get("primary_conninfo") and self.receiver is None)):
            self.connect()

    def connect(self) -> None:
        self._receivers += 1
        self.receiver = self._receivers if self.streams else None

    def kill(self, pid: int, number: int) -> None:
        """In the place of os.kill."""
        if pid == self.receiver:
            self.journal.append("receiver ended")
            self.receiver = None
            if self.applied.get("primary_conninfo"):
                self.connect()
        elif pid == self.pid and number == signal.SIGHUP:
            self.take_up()
        elif pid == self.pid:
            self.journal.append("stop")
            self.pid = self.receiver = None
        else:
            raise ProcessLookupError(pid)

    def boot(self) -> None:
        self.journal.append("start")
        if self.starts:
            self.pid, self.silent, self.in_recovery = 4711, False, (self.data / "standby.signal").exists()
            self.take_up()

    async def rows(self, statement: str, values: Any, limit_s: float) -> list[Any]:
        if self.pid is None:
            raise Silent("PostgreSQL of this host: connection refused")
        if self.silent:
            await asyncio.sleep(limit_s)
            raise Silent(f"PostgreSQL of this host: no answer in {limit_s:g} s")
        for part, hook in list(self.before.items()):
            if part in statement:
                hook()
        if statement == OBSERVE:
            return [(self._observed(),)]
        if statement == RULES:
            return self._rule_rows()
        for part, work in self._statements.items():
            if part in statement:
                return work(self, statement, values) or []
        raise AssertionError(f"a statement that this pretended server does not know: {statement}")

    def _rule_rows(self) -> list[Any]:
        ordered = sorted(self.rules, key=lambda rule: (rule.key, rule.leader))
        floor = min((rule.prior for rule in ordered if rule.key == ordered[-1].key), default=(0, 0))
        return [tuple(rule.as_dict().values()) for rule in ordered if rule.key >= floor]

    def _observed(self) -> dict[str, Any]:
        streaming = self.receiver is not None
        shown = {"primary_conninfo": "", "synchronous_standby_names": "", **self.applied}
        return {
            **statuses.server("pg2"),
            "in_recovery": self.in_recovery,
            "lsn": self.lsn,
            "control_timeline": self.timeline,
            "checkpoint_timeline": self.checkpoint_timeline,
            "writes_timeline": None if self.in_recovery else self.timeline,
            "streaming": streaming,
            "primary_conninfo": shown["primary_conninfo"],
            "synchronous_standby_names": shown["synchronous_standby_names"],
            "promised": shown.get("ha.promised"),
            "replication": [
                {"name": name, "state": standby.state, "sync_state": "quorum", "lag_bytes": standby.lag_bytes}
                for name, standby in self.standbys.items()
            ],
            "slots": [{"name": name, "active": False, "wal_status": "reserved"} for name in sorted(self.slots)],
            "has_rules": bool(self.rules),
        }

    def _alter(self, statement: str, _values: Any) -> None:
        self.write_conf({**self.conf, **parse_auto_conf(statement.removeprefix("ALTER SYSTEM SET "))})

    def _reset(self, statement: str, _values: Any) -> None:
        now = self.conf
        now.pop(statement.removeprefix("ALTER SYSTEM RESET "), None)
        self.write_conf(now)

    def _promote(self, _statement: str, _values: Any) -> list[Any]:
        self.journal.append("promote")
        self.timeline += 1
        self.in_recovery = False
        (self.data / "standby.signal").unlink(missing_ok=True)
        (self.data / "pg_wal" / f"{self.timeline:08X}.history").write_text(f"{self.timeline - 1}\t0/{self.lsn:X}\tno\n")
        return [(True,)]

    def _write_rule(self, _statement: str, values: Any) -> None:
        rule = Rule.from_dict(values)
        self.journal.append(f"row {rule.name}")
        self.lsn += 100
        if (rule.key, rule.leader) not in {(row.key, row.leader) for row in self.rules}:  # else ON CONFLICT
            self.rules.append(rule)

    def _flushed(self, _statement: str, values: Any) -> list[Any]:
        return [
            (name,)
            for name, standby in self.standbys.items()
            if standby.state == "streaming" and (standby.flushed is None or standby.flushed >= values[0])
        ]

    def _checkpoint(self, _statement: str, _values: Any) -> None:
        self.journal.append("checkpoint")
        self.checkpoint_timeline = self.timeline

    def _terminate(self, _statement: str, values: Any) -> None:
        self.journal.append(f"end senders {values[0]}")
        self.senders = [pid for pid in self.senders if pid not in values[0]]

    def _end_readers(self, _statement: str, _values: Any) -> None:
        self.journal.append("end readers")
        self.readers_hold_up = False

    def _current(self, statement: str, _values: Any) -> list[Any]:
        return [tuple(self.applied.get(name, "") for name in re.findall(r"current_setting\('([^']+)'", statement))]

    _statements: Any = field(
        default_factory=lambda: {
            "ALTER SYSTEM SET": Server._alter,
            "ALTER SYSTEM RESET": Server._reset,
            "pg_reload_conf": lambda self, *_: self.take_up(),
            "current_setting": Server._current,
            "INSERT INTO ha.rule": Server._write_rule,
            "to_regclass": lambda self, *_: [(bool(self.rules),)],
            "SELECT pg_is_in_recovery()": lambda self, *_: [(self.in_recovery,)],
            "pg_promote": Server._promote,
            "pg_create_physical": lambda self, _statement, values: self.slots.add(values[0]),
            "flush_lsn - '0/0'::pg_lsn >=": Server._flushed,
            "pg_current_wal_flush_lsn": lambda self, *_: [(self.lsn,)],
            "pg_switch_wal": lambda self, *_: self.journal.append("switch segment"),
            "CHECKPOINT": Server._checkpoint,
            "pg_wal_replay_pause()": lambda self, *_: self.journal.append("replay paused"),
            "pg_get_wal_replay_pause_state": lambda self, *_: [(not self.readers_hold_up,)],
            "'walreceiver'": lambda self, *_: [(self.receiver,)] if self.receiver else [],
            "pg_wal_replay_resume": lambda self, *_: self.journal.append("replay resumed"),
            "pg_last_wal_replay_lsn() >=": lambda self, *_: [(not self.readers_hold_up,)],
            "backend_type = 'client backend'": Server._end_readers,
            "SELECT pid FROM pg_stat_replication": lambda self, *_: [(pid,) for pid in self.senders],
            "unnest": Server._terminate,
            "NOT EXISTS (SELECT FROM pg_stat_activity": lambda self, *_: [(not self.senders,)],
            "SET synchronous_commit = local": lambda self, *_: None,
            "ha": lambda self, *_: None,  # its schema
        },
        repr=False,
    )

    def program(self, command: list[str]) -> tuple[int, str]:
        """systemctl, pg_controldata, pg_rewind, pg_basebackup."""
        name = next(Path(word).name for word in command if word not in ("sudo", "-n"))
        status = self.programs.get(name, 0)
        if name == "systemctl":
            if "show" in command:
                state = "activating" if self.activating else "inactive" if self.pid is None else "active"
                began = f"InactiveExitTimestampMonotonic={self.started_at * 1e6:.0f}"
                return status, f"ActiveState={state}\nJob={self.job}\n{began}"
            if "stop" in command:
                self.journal.append("cancel start")
                self.activating, self.job = False, ""
            elif "start" in command and status == 0 and not self.activating:
                self.boot()
        elif name == "pg_controldata":
            return status, "\n".join(f"{key}: {value}" for key, value in self.control.items())
        else:
            self.journal.append(name)
            if status == 0:
                self._copied(command)
        return status, f"{name} said so"

    def _copied(self, command: list[str]) -> None:
        """What a rewind or a copy brings is the leader's."""
        folder = next((Path(w.partition("=")[2]) for w in command if w.startswith("--pgdata=")), self.data)
        (folder / "pg_wal").mkdir(parents=True, exist_ok=True)
        (folder / "PG_VERSION").write_text("17\n")
        leaders = {"synchronous_standby_names": final_need(FIRST).setting, "ha.promised": "1 pg1/x"}
        (folder / "postgresql.auto.conf").write_text(format_auto_conf(leaders))
        (folder / "standby.signal").unlink(missing_ok=True)


# PgBouncer of this host


@dataclass
class Bouncer:
    """`servers`: its connections, as (database, address, state); `stuck`: PAUSE does not end."""

    targets: Path
    journal: list[str]
    hosts: dict[str, str] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    servers: list[tuple[str, str, str]] = field(default_factory=list)
    stuck: bool = False
    down: bool = False

    async def connect(self, _conninfo: str, _limit_s: float) -> Any:
        if self.down:
            raise OSError("connection refused")
        return Connection(None)

    async def run(self, _connection: Any, statement: str) -> list[dict[str, Any]]:
        if statement == "SHOW DATABASES":
            return [{"name": n, "host": h, "paused": int(n in self.paused)} for n, h in self.hosts.items()]
        if statement == "SHOW POOLS":
            return []
        if statement == "SHOW SERVERS":
            return [{"database": d, "addr": a, "state": s} for d, a, s in self.servers]
        self.journal.append(statement)
        action, _, name = statement.partition(" ")
        if action == "RELOAD":
            self.hosts = dict(re.findall(r"^(\w+) = host=(\S+)", self.targets.read_text(), re.MULTILINE))
        elif action == "PAUSE" and self.stuck:
            await asyncio.sleep(600)
        elif action == "RESUME":
            self.paused.discard(name)
        else:
            self.paused.add(name)
            self.servers = [server for server in self.servers if server[0] != name]
        return []


class Connection:
    """Can be referred to weakly, as psycopg's."""

    def __init__(self, execute: Any) -> None:
        self.execute, self.closed = execute, False
        self.pgconn = SimpleNamespace(finish=lambda: None, socket=-1)
