"""The surroundings of one agent, all pretended: the other agents, its PostgreSQL, its PgBouncer, and time.

Agent, duties and HTTP application are the real ones. `Surroundings.journal` has, in order, what the agent did to the
world. A sleep takes no time: where nothing is left to do, the clock goes on to whatever is due next.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from devmentor.pgagent.app import application
from devmentor.pgagent.peers import CallFailed, Peers
from devmentor.pgagent.postgres import LocalPostgres
from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Silent
from devmentor_ha.rules import Rule, final_need
from tests.unit.ha import statuses
from tests.unit.ha.statuses import ADDRESSES, LSN, NODES, POOLERS
from tests.unit.services.pgagent.pretended_host import (
    CLOCK,
    FIRST,
    Bouncer,
    Connection,
    PretendedTime,
    Server,
    Standby,
    control_data,
    replayed_to,
)

__all__ = [
    "ADDRESSES",
    "CLOCK",
    "FENCED",
    "FIRST",
    "LSN",
    "NODES",
    "PretendedTime",
    "Standby",
    "Surroundings",
    "control_data",
    "promised",
    "raising",
    "refused",
    "replayed_to",
]

FENCED = 'ANY 1 ("devmentor-fenced")'
TOKEN = "a-token-of-the-tests"

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
        self.late: dict[str, float] = {}  # node -> seconds until its server answers over the network
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
        late = limit_s if node in self.neighbours.dead else self.late.get(node, 0.0)
        if late:
            await asyncio.sleep(min(late, limit_s))
        if late >= limit_s:
            raise Silent(f"{what}: no answer in {limit_s:g} s") from TimeoutError()
        return [(1,)]

    async def _connect(self, _conninfo: str, limit_s: float) -> Any:
        async def execute(statement: str, values: Any = None) -> Any:
            rows = await self.server.rows(statement, values, limit_s)

            async def fetchone() -> Any:
                return rows[0]

            return SimpleNamespace(fetchone=fetchone)

        return Connection(execute)

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
