"""PgBouncer of this host: its targets follow the highest committed rule."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from devmentor.pgagent.sql import Silent, bounded, connect, sever
from devmentor.pgagent.state import write_durably
from devmentor_ha.rules import Rule
from devmentor_ha.textfiles import conninfo, targets, targets_rule

if TYPE_CHECKING:
    from devmentor.pgagent.agent import Agent

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
Say = Callable[..., Awaitable[Rows]]
"""A command of the console and its limit in seconds (2 by default). Raises Silent."""

BACKENDS = ("{0}", "{0}_ro", "{0}_session")


class Pooler:
    """Its console is reached over the socket; PgBouncer lets the user in that it runs as."""

    def __init__(self, agent: "Agent") -> None:
        settings = agent.settings
        self._agent = agent
        self._settings = settings
        self._file = settings.targets_file
        self._lock = asyncio.Lock()
        self._console = conninfo(
            {
                "host": settings.pooler_socket_dir,
                "port": settings.pooler_port,
                "user": "pgbouncer",
                "dbname": "pgbouncer",
                "sslmode": "disable",
            }
        )
        self._databases: dict[str, dict[str, Any]] = {}
        self._seen_at = 0.0
        self._replicas: list[str] = []

    def _follows(self) -> tuple[int, int, str]:
        try:
            return targets_rule(self._file.read_text()) or (0, 0, "")
        except OSError:
            return 0, 0, ""

    @property
    def epoch(self) -> int:
        return self._follows()[0]

    def status(self) -> dict[str, Any]:
        """As in the agents' status."""
        epoch, sub, leader = self._follows()
        age = time.monotonic() - self._seen_at
        node = self._settings.nodes.get(leader)
        return {
            "age_s": round(age, 3),
            "state": "running" if age < 5 else "silent",
            "epoch": epoch,
            "sub": sub,
            "leader": leader,
            "target": node.address if node else "",
            "databases": self._databases,
        }

    @asynccontextmanager
    async def _commands(self) -> AsyncIterator[Say]:
        """The console, for commands one after the other: a switchover's stall has many of them. Raises Silent."""
        try:
            connection = await connect(self._console, 2.0)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise _silent("connect", error) from error

        async def say(statement: str, limit_s: float = 2.0) -> Rows:
            try:
                return await bounded(connection, _run(connection, statement), limit_s)
            except (psycopg.Error, OSError, TimeoutError) as error:
                raise _silent(statement, error) from error

        try:
            yield say
        finally:
            sever(connection)

    async def observe(self) -> None:
        """What the pools do. Raises Silent."""
        async with self._commands() as say:
            await self._observe(say)

    async def _observe(self, say: Say) -> None:
        states = {row["name"]: row for row in await say("SHOW DATABASES")}
        pools = await say("SHOW POOLS")
        self._databases = {
            name: {
                "host": states[name]["host"],
                "paused": bool(states[name]["paused"]),
                "clients": sum(int(row["cl_active"]) for row in pools if row["database"] == name),
                "waiting": sum(int(row["cl_waiting"]) for row in pools if row["database"] == name),
                "servers": sum(int(row["sv_active"]) + int(row["sv_idle"]) for row in pools if row["database"] == name),
            }
            for name in self.names()
            if name in states
        }
        self._seen_at = time.monotonic()

    def names(self) -> list[str]:
        return [pattern.format(self._settings.database) for pattern in BACKENDS]

    async def retarget(self, rule: Rule, replicas: list[str]) -> dict[str, Any]:
        """Lead clients to the rule's leader; a rule that is not above the one followed changes nothing.

        Of an entry with a client in the middle of a transaction with another node all clients are dropped.
        """
        async with self._lock:
            follows = self._follows()
            if (rule.epoch, rule.sub) > follows[:2]:
                nodes = self._settings.nodes
                addresses = [nodes[name].address for name in replicas if name in nodes]
                content = targets(
                    self._settings.database,
                    self._settings.pg_port,
                    nodes[rule.leader].address,
                    addresses,
                    (rule.epoch, rule.sub, rule.leader),
                )
                write_durably(self._file, content)
                log.info("retarget", extra={"rule": rule.name, "leader": rule.leader, "replicas": replicas})
            await self.apply()
            return self.status()

    async def apply(self) -> None:
        """Have PgBouncer do what the file says. Raises Silent."""
        leader = self._follows()[2]
        async with self._commands() as say:
            await say("RELOAD")
            if leader:
                address = self._settings.nodes[leader].address
                write = {self.names()[0], self.names()[2]}
                stuck = {
                    row["database"]
                    for row in await say("SHOW SERVERS")
                    if row["database"] in write and row["addr"] != address and row["state"] != "idle"
                }
                for name in sorted(stuck):
                    log.info("drop clients of the former leader", extra={"database": name})
                    await say(f"KILL {name}")
            await _resume(say, self.names())

    async def act(self, action: str, deadline_s: float) -> dict[str, Any]:
        """`pause`, `resume`, `reload` or `kill`; a pause that does not end in time is taken back. Raises Silent.

        A pause waits for transactions. Sessions of the session entry have no end to wait for: they are dropped, last.
        """
        write = [self.names()[0], self.names()[2]]
        async with self._commands() as say:
            await self._observe(say)
            before = dict(self._databases)
            if action == "pause":
                try:
                    await say(f"PAUSE {write[0]}", deadline_s)
                    await say(f"KILL {write[1]}", deadline_s)
                except Silent as error:
                    async with self._commands() as another:  # the first connection still waits for its pause
                        await _resume(another, write)
                    raise Silent(
                        f"PgBouncer of this host has transactions that do not end in {deadline_s:g} s; resumed"
                    ) from error
            elif action == "resume":
                await _resume(say, write)
            elif action == "reload":
                await say("RELOAD")
            else:
                for name in write:
                    await say(f"KILL {name}")
                await _resume(say, write)
            await self._observe(say)
        return {"before": before, "after": self._databases}

    async def follow(self, rule: Rule | None, replicas: list[str]) -> None:
        """The pull: whatever the leader's push did not bring. Raises Silent."""
        await self.observe()
        if rule is None:
            return
        if (rule.epoch, rule.sub) > self._follows()[:2]:
            await self.retarget(rule, replicas)
            return
        host = self._databases.get(self.names()[0], {}).get("host")
        if host and host != self._settings.nodes[rule.leader].address and self._follows()[2] == rule.leader:
            async with self._lock:
                await self.apply()  # the file was written and the rest interrupted


async def _resume(say: Say, names: list[str]) -> None:
    for row in await say("SHOW DATABASES"):
        if row["name"] in names and int(row["paused"]):
            await say(f"RESUME {row['name']}")


def _silent(what: str, error: BaseException) -> Silent:
    return Silent(f"PgBouncer of this host, {what}: {str(error).strip() or type(error).__name__}")


async def _run(connection: psycopg.AsyncConnection[Any], statement: str) -> Rows:
    cursor = psycopg.AsyncClientCursor(connection)
    await cursor.execute(statement.encode())
    if cursor.description is None:
        return []
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]
