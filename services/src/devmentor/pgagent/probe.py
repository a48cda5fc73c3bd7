"""Whether the leader is alive, as this follower sees it: detection is by the followers, not by the leader's agent."""

import time
from typing import Any

from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Database, Silent, fresh_rows

# Writes WAL without a transaction id, so it neither waits for replicas nor leaves anything behind.
BEAT = "SELECT pg_logical_emit_message(false, 'devmentor', '')"
NEW_CONNECTION_EVERY_S = 2.0


class Probe:
    """Probes one leader: statements that write WAL, and new connections (a frozen postmaster forks none)."""

    def __init__(self, settings: Settings, leader: str, address: str) -> None:
        self.leader = leader
        self._limit_s = settings.probe_interval_s
        self._needed = settings.probe_failures
        self._conninfo = settings.leader_conninfo(address, application_name=f"{settings.node} probe")
        self._database = Database(self._conninfo, f"{leader}'s PostgreSQL")
        self._failures = {"statement": 0, "connection": 0, "unwell": 0}
        self._reason = ""
        self._since = 0.0
        self._connected_at = 0.0
        self.succeeded_at = 0.0

    async def once(self, unwell: str = "") -> None:
        """One probe, within the interval. `unwell`: what the leader's agent says against its own server."""
        try:
            await self._database.rows(BEAT, limit_s=self._limit_s)
        except Silent as silent:
            self._count("statement", str(silent))
        else:
            self._count("statement", "")
            self.succeeded_at = time.monotonic()
        if not self._failures["statement"] and time.monotonic() - self._connected_at > NEW_CONNECTION_EVERY_S:
            self._connected_at = time.monotonic()
            try:
                await fresh_rows(self._conninfo, "SELECT 1", self._limit_s, f"{self.leader}'s PostgreSQL, newly")
            except Silent as silent:
                self._connected_at = 0.0
                self._count("connection", str(silent))
            else:
                self._count("connection", "")
        self._count("unwell", unwell)

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
        """Drop the standing connection."""
        self._database.drop()
