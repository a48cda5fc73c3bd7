"""The surroundings of one agent, all pretended: the other agents, its PostgreSQL, its PgBouncer, and time.

Agent, duties and HTTP application are the real ones. `Surroundings.journal` has, in order, what the agent did to the
world. A sleep takes no time: where nothing is left to do, the clock goes on to whatever is due next.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import selectors
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from devmentor.pgagent.app import application
from devmentor.pgagent.peers import CallFailed, Peers
from devmentor.pgagent.postgres import OBSERVE, RULES, LocalPostgres
from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Silent
from devmentor_ha.rules import Rule, final_need, first_rule
from devmentor_ha.textfiles import format_auto_conf, parse_auto_conf
from tests.unit.ha import statuses
from tests.unit.ha.statuses import ADDRESSES, LSN, NODES, POOLERS

FIRST = first_rule("pg1", NODES[1:])
FENCED = 'ANY 1 ("devmentor-fenced")'
TOKEN = "a-token-of-the-tests"

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
            if "start" in command and status == 0:
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
        return _Connection(None)

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


# The other agents


@dataclass
class Asked:
    """A call that the agent made to another one. `at`: by the clock."""

    node: str
    method: str
    body: dict[str, Any] | None
    at: float


class Neighbours:
    """`status`: of each other agent, the test's to change; `answers`: (node, method) -> instead of the usual answer.

    `silent`: agents that do not answer; `dead`: nodes whose PostgreSQL does not.
    """

    def __init__(self, own: str, rule: Rule, journal: list[str]) -> None:
        self.status = {name: status for name, status in statuses.cluster(rule).items() if name != own}
        for status in self.status.values():
            status["clock_ahead_s"] = 0.0
        self.answers: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {}
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.asked: list[Asked] = []
        self.leaders: Server | None = None  # whom they follow once they are repointed
        self._journal = journal

    def calls(self, method: str) -> list[str]:
        """Who was asked for it, in order."""
        return [asked.node for asked in self.asked if asked.method == method]

    def body(self, method: str) -> dict[str, Any]:
        """Of the last such call."""
        return next(asked.body or {} for asked in reversed(self.asked) if asked.method == method)

    async def answer(self, node: str, method: str, body: dict[str, Any] | None, limit_s: float) -> Any:
        self.asked.append(Asked(node, method, body, CLOCK.now))
        if node in self.silent:
            await asyncio.sleep(limit_s)
            raise CallFailed(node, f"no answer to {method} in {limit_s:g} s")
        if method != "status":
            self._journal.append(f"{node} {method}")
        usual = getattr(self, f"_{method}", lambda node, body: {"done": True})
        special = self.answers.get((node, method))
        answer = special(body or {}) if special else usual(node, body or {})
        return json.loads(json.dumps(answer))

    def _status(self, node: str, _body: dict[str, Any]) -> dict[str, Any]:
        return {**copy.deepcopy(self.status[node]), "now": CLOCK.time() + self.status[node]["clock_ahead_s"]}

    def promise(self, node: str, epoch: int, controller: str = "pg9/other", ago_s: float = 0.0) -> None:
        """`ago_s` seconds ago, by the clock of that node."""
        at = CLOCK.time() - ago_s + self.status[node]["clock_ahead_s"]
        self.status[node]["promise"] = {"epoch": epoch, "controller": controller, "at": at}

    def suspect(self, *names: str, leader: str = "pg1") -> None:
        for name in names:
            self.status[name]["suspects"] = {"leader": leader, "since": CLOCK.time(), "failures": 3, "reason": "test"}

    def lose(self, node: str) -> None:
        """The whole host."""
        self.silent.add(node)
        self.dead.add(node)

    def lead(self, rule: Rule, timeline: int = 1) -> None:
        """The rule's leader leads by it, and says so; its lineage is one that forked off at LSN."""
        status = self.status[rule.leader]
        entry = rule.as_dict()
        status.update(rule=entry, rules=[entry], committed=entry, leading=entry)
        past = [{"timeline": number, "epoch": number, "end": LSN} for number in range(1, timeline)]
        status["lineage"] = [*past, {"timeline": timeline, "epoch": rule.epoch if timeline > 1 else 1, "end": None}]
        status["postgres"].update(in_recovery=False, checkpoint_timeline=timeline, streaming=False)
        status["promise"]["epoch"] = max(rule.epoch, status["promise"]["epoch"])

    def _fence(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        status = self.status[node]
        promise = status["promise"]
        if (promise["epoch"], promise["controller"]) >= (body["epoch"], body["controller"]):
            raise promised(node, promise["epoch"])
        self.promise(node, body["epoch"], body["controller"])
        mode = "follower" if status["postgres"]["in_recovery"] else "leader"
        found = {name: status["postgres"][name] for name in ("lsn", "timeline")}
        return {"mode": mode, **found, "rules": status["rules"], "committed": status["committed"]}

    def _demote(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**self._fence(node, body), "mode": "demoted"}

    def _repoint(self, node: str, _body: dict[str, Any]) -> dict[str, Any]:
        if self.leaders is not None:
            self.leaders.standbys[node] = Standby()
        return {"done": True}

    def _lead(self, node: str, body: dict[str, Any]) -> dict[str, Any]:
        self.lead(Rule.from_dict(body["rule"]), timeline=2)
        return {"accepted": True}


def promised(node: str, epoch: int) -> CallFailed:
    said = f"{node} promised {epoch} to pg9/other"
    return CallFailed(node, said, 409, {"error": {"code": "promised", "message": said}})


def refused(node: str, why: str = "not now") -> CallFailed:
    return CallFailed(node, why, 409, {"error": {"code": "refused", "message": why}})


def raising(error: Exception) -> Callable[..., Any]:
    """For `answers` and `before`."""

    def inner(*_: Any) -> None:
        raise error

    return inner


# All of it


class Surroundings:
    """One agent in the cluster of tests/unit/ha/statuses.py. `rule`: committed, as everybody knows it."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: Any,
        node: str,
        rule: Rule,
        duties: Iterable[str],
        priorities: dict[str, int],
        **settings: Any,
    ) -> None:
        self.journal: list[str] = []
        self.neighbours = Neighbours(node, rule, self.journal)
        self._prepare(folder, node, rule, priorities)
        leads = node == rule.leader
        self.server = self.neighbours.leaders = Server(folder / "data", self.journal, not leads, [rule])
        if leads:
            self.server.standbys = {name: Standby() for name in NODES if name != node}
        self._replace(monkeypatch)
        self.settings = Settings(
            node=node,
            duties=list(duties),
            port=5440,
            token_file=folder / "token",
            cluster_file=folder / "cluster.json",
            state_dir=folder / "state",
            pg_data_dir=folder / "data",
            targets_file=folder / "targets.ini",
            **settings,
        )
        self.app, self.duties = application(self.settings)
        self.agent = self.duties._agent
        self.state, self.leading = self.agent.state, self.agent.leading
        self.bouncer = Bouncer(self.settings.targets_file, self.journal)
        monkeypatch.setattr("devmentor.pgagent.pooler.connect", self.bouncer.connect)
        monkeypatch.setattr("devmentor.pgagent.pooler._run", self.bouncer.run)
        leader = self.settings.leader_conninfo(ADDRESSES[rule.leader])
        own = {"synchronous_standby_names": final_need(rule).setting} if leads else {"primary_conninfo": leader}
        self.server.write_conf(own)
        self.server.take_up()
        self.server.slots = set(self.agent.follower.slots())
        self.journal.clear()

    def _prepare(self, folder: Path, node: str, rule: Rule, priorities: dict[str, int]) -> None:
        (folder / "token").write_text(TOKEN)
        cluster = {
            "postgres": {n: {"address": ADDRESSES[n], "priority": priorities.get(n, 0)} for n in NODES},
            "pgbouncer": {n: {"address": ADDRESSES[n]} for n in POOLERS},
        }
        (folder / "cluster.json").write_text(json.dumps(cluster))
        (folder / "data" / "pg_wal").mkdir(parents=True)
        (folder / "data" / "PG_VERSION").write_text("17\n")
        if node != rule.leader:
            (folder / "data" / "standby.signal").touch()
        state = folder / "state"
        state.mkdir()
        for name in ("committed", "newest"):
            (state / f"{name}.json").write_text(json.dumps(rule.as_dict()))
        (state / "following.json").write_text(json.dumps({"epoch": rule.epoch, "leader": rule.leader}))

    def _replace(self, monkeypatch: Any) -> None:
        around = self

        class PretendedPostgres(LocalPostgres):
            def process(self) -> int | None:
                return around.server.pid

            async def rows(self, statement: str, values: tuple[Any, ...] = (), limit_s: float = 2.0) -> list[Any]:
                return await around.server.rows(statement, values, limit_s)

            async def run(self, command: list[str], limit_s: float) -> tuple[int, str]:
                return around.server.program(command)

        class PretendedPeers(Peers):
            async def call(self, node: str, method: str, body: Any = None, limit_s: float = 2.0) -> Any:
                if node == around.settings.node:
                    return await around.ask(method, body)
                return await around.neighbours.answer(node, method, body, limit_s)

        class PretendedDatabase:
            def __init__(self, conninfo: str, what: str) -> None:
                self._conninfo, self._what = conninfo, what

            async def rows(self, statement: str, values: Any = (), limit_s: float = 2.0) -> list[Any]:
                return await around.fresh_rows(self._conninfo, statement, limit_s, self._what)

            def drop(self) -> None:
                """Nothing stands."""

        agent = "devmentor.pgagent."
        monkeypatch.setattr(f"{agent}agent.LocalPostgres", PretendedPostgres)
        monkeypatch.setattr(f"{agent}agent.Peers", PretendedPeers)
        monkeypatch.setattr(f"{agent}probe.Database", PretendedDatabase)
        for module in ("postgres", "probe", "duties"):
            monkeypatch.setattr(f"{agent}{module}.fresh_rows", self.fresh_rows)
        monkeypatch.setattr(f"{agent}leading.connect", self._connect)
        monkeypatch.setattr(f"{agent}postgres.os.kill", lambda pid, number: self.server.kill(pid, number))
        monkeypatch.setattr(f"{agent}duties.booted_at", lambda: 0.0)
        monkeypatch.setattr(f"{agent}follow.asyncio.to_thread", _at_once)

    async def fresh_rows(self, conninfo: str, statement: str, limit_s: float, what: str) -> list[Any]:
        """Over the network or over the socket."""
        host = re.search(r"host='([^']*)'", conninfo)
        assert host is not None
        node = next((name for name, address in ADDRESSES.items() if address == host[1]), None)
        if node is None:
            return await self.server.rows(statement, (), limit_s)
        if node in self.neighbours.dead:
            await asyncio.sleep(limit_s)
            raise Silent(f"{what}: no answer in {limit_s:g} s")
        return [(1,)]

    async def _connect(self, _conninfo: str, limit_s: float) -> Any:
        async def execute(statement: str, values: Any = None) -> Any:
            rows = await self.server.rows(statement, values, limit_s)

            async def fetchone() -> Any:
                return rows[0]

            return SimpleNamespace(fetchone=fetchone)

        return _Connection(execute)

    async def ask(self, method: str, body: dict[str, Any] | None = None) -> Any:
        """As another agent asks this one. Raises CallFailed."""
        transport = httpx.ASGITransport(app=self.app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="https://agent", headers=headers) as client:
            path = f"/v1/{method}"
            response = await (client.get(path) if body is None else client.post(path, json=body))
        if response.status_code < 300:
            return response.json()
        error = response.json()
        raise CallFailed(self.settings.node, error["error"]["message"], response.status_code, error)

    async def look(self) -> None:
        """What the loops do before they act: it looks at its server and at the others."""
        if self.agent.has_postgres:
            await self.agent.observe()
        await self.agent.look_around()

    async def live(self, seconds: float) -> None:
        """Let the agent's loops run."""
        if not self.duties._tasks:
            await self.look()
            self.duties.begin()
        await asyncio.sleep(seconds)

    async def end(self) -> None:
        await self.duties.end()
        await self.agent.close()


async def _at_once(work: Callable[..., Any], *values: Any) -> Any:
    """A thread would take real time."""
    return work(*values)


class _Connection:
    """Can be referred to weakly, as psycopg's."""

    def __init__(self, execute: Any) -> None:
        self.execute, self.closed = execute, False
        self.pgconn = SimpleNamespace(finish=lambda: None, socket=-1)
