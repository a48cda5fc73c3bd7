"""Whether the leader is alive, as this follower sees it: detection is by the followers, not by the leader's agent."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any

from devmentor.pgagent import metrics
from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Database, Silent, fresh_rows

log = logging.getLogger(__name__)

# Writes WAL without a transaction id, so it neither waits for replicas nor leaves anything behind.
BEAT = "SELECT pg_logical_emit_message(false, 'devmentor', '')"
STANDBYS_BEAT = "SELECT pg_last_wal_receive_lsn()"
NEW_CONNECTION_EVERY_S = 2.0
PROMPT = 0.5  # of a probe's limit


class Reference:
    """What a probe asks of the leader, asked of the own server at the same time and by the same way: TLS over TCP.

    Where that is slow, this node is, and the leader's silence proves nothing. Nobody waits for it.
    """

    def __init__(self, settings: Settings) -> None:
        self._limit_s = settings.probe_interval_s
        address = settings.nodes[settings.node].address
        self._conninfo = settings.leader_conninfo(address, application_name=f"{settings.node} reference")
        self._database = Database(self._conninfo, "PostgreSQL of this host")
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._prompt: set[str] = set()

    def ask(self, kind: str) -> None:
        """Begin the reference of one probe; of the last one nothing is left."""
        if kind in self._asked:
            self._asked[kind].cancel()
        self._prompt.discard(kind)
        self._asked[kind] = asyncio.create_task(self._ask(kind, time.monotonic()))

    async def _ask(self, kind: str, began: float) -> None:
        with contextlib.suppress(Silent):
            if kind == "statement":
                await self._database.rows(STANDBYS_BEAT, limit_s=self._limit_s)
            else:
                await fresh_rows(self._conninfo, "SELECT 1", self._limit_s, "PostgreSQL of this host, newly")
            if time.monotonic() - began <= PROMPT * self._limit_s:
                self._prompt.add(kind)

    def prompt(self, kind: str) -> bool:
        """Whether the own server has answered, and within half the limit of a probe."""
        return kind in self._prompt

    def drop(self) -> None:
        """Give up what is under way, and the standing connection: the next one is no older than the leader's."""
        for task in self._asked.values():
            task.cancel()
        self._database.drop()


class Probe:
    """Probes one leader: statements that write WAL, and new connections (a frozen postmaster forks none)."""

    def __init__(self, settings: Settings, leader: str, address: str) -> None:
        self.leader = leader
        self._limit_s = settings.probe_interval_s
        self._needed = settings.probe_failures
        self._excusable = settings.probe_excuses
        self._conninfo = settings.leader_conninfo(address, application_name=f"{settings.node} probe")
        self._database = Database(self._conninfo, f"{leader}'s PostgreSQL")
        self._reference = Reference(settings)
        self._failures = {"statement": 0, "connection": 0, "unwell": 0}
        self._excused = {"statement": 0, "connection": 0}  # since the last success
        self._reason = ""
        self._since = 0.0
        self._connected_at = 0.0
        self.succeeded_at = 0.0

    async def once(self, unwell: str = "") -> None:
        """One probe, within the interval. `unwell`: what the leader's agent says against its own server."""
        if await self._succeeds("statement", self._database.rows(BEAT, limit_s=self._limit_s)):
            self.succeeded_at = time.monotonic()
            if self.succeeded_at - self._connected_at > NEW_CONNECTION_EVERY_S:
                newly = fresh_rows(self._conninfo, "SELECT 1", self._limit_s, f"{self.leader}'s PostgreSQL, newly")
                connected = await self._succeeds("connection", newly)
                self._connected_at = self.succeeded_at if connected else 0.0
        self._count("unwell", unwell)

    async def _succeeds(self, kind: str, work: Coroutine[Any, Any, object]) -> bool:
        if self._excused[kind] < self._excusable:
            self._reference.ask(kind)
        try:
            await work
        except Silent as silent:
            self._fail(kind, silent)
            return False
        self._excused[kind] = 0
        self._count(kind, "")
        return True

    def _fail(self, kind: str, silent: Silent) -> None:
        slow = not self._reference.prompt(kind)
        self._reference.drop()
        if not (slow and silent.timed_out and self._excused[kind] < self._excusable):
            self._count(kind, str(silent))
            return
        metrics.EXCUSED.inc()
        if not any(self._excused.values()):
            extra = {"leader": self.leader, "reason": str(silent)}
            log.warning("excuses the leader's silence: this node is slow itself", extra=extra)
        self._excused[kind] += 1

    def _count(self, kind: str, trouble: str) -> None:
        if not trouble:
            self._failures[kind] = 0
        else:
            if not any(self._failures.values()):
                self._since = time.time()
            self._failures[kind] += 1
            self._reason = trouble
        if not any(self._failures.values()):
            self._since = 0.0

    @property
    def suspicion(self) -> dict[str, Any] | None:
        """As in the status; None while the leader is not suspected."""
        failures = max(self._failures.values())
        if failures < self._needed:
            return None
        return {"leader": self.leader, "since": self._since, "failures": failures, "reason": self._reason}

    def close(self) -> None:
        """Drop the standing connections."""
        self._database.drop()
        self._reference.drop()
