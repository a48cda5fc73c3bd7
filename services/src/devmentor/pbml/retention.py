"""Removes what is older than its tenant keeps: as a client's deletion would, in batches, by one worker at a time."""

import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial

from prometheus_client import Counter

from devmentor.pbml import tenant_limits
from devmentor.pbml.db import Connection, Database
from devmentor.pbml.models import watermark
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import expiry, maintenance, usage
from devmentor.pbml.store.expiry import Expired

log = logging.getLogger(__name__)

REMOVED = Counter("pbml_retention_removed", "Documents and turns that retention removed", ["tenant", "kind"])
REMOVED_BYTES = Counter("pbml_retention_removed_bytes", "Their text", ["tenant", "kind"])

_TASK = "retention"
_LEASE_S = 120.0
_ROUND_S = 30.0


@dataclass(frozen=True, slots=True)
class Rule:
    """Documents or turns of a tenant that were accepted more than `days` ago go."""

    tenant: str
    kind: str
    days: int


class Retention:
    """A round at a time. The ledger's lease keeps two from the same work; both doing it would harm nothing."""

    def __init__(self, settings: Settings, database: Database, holder: str) -> None:
        self._s = settings
        self._db = database
        self._holder = holder
        self._next_at = 0.0

    async def rules(self) -> list[Rule]:
        """Of every tenant that stored anything."""
        if not self._s.retention:
            return []
        async with self._db.read() as c:
            tenants = sorted(await usage.read_all(c))
        kept = {tenant: tenant_limits.limits(tenant_limits.of(self._s.retention, tenant)) for tenant in tenants}
        return [
            Rule(tenant, kind, days[f"{kind}s_days"])
            for tenant, days in kept.items()
            for kind in expiry.KINDS
            if f"{kind}s_days" in days
        ]

    async def step(self) -> None:
        """A round, where it is time for one."""
        if self._s.retention and time.monotonic() >= self._next_at:
            finished = await self.round()
            # What did not fit into the time is gone on with in the next round of maintenance.
            self._next_at = 0.0 if finished is False else time.monotonic() + self._s.retention_every_s

    async def round(self) -> bool | None:
        """Remove what is too old, for at most half a minute; None where another worker is at it, False where more is
        left. Tenants take turns, a batch each."""
        work = deque(await self.rules())
        if not work:
            return True
        if (await self._db.write(lambda c: maintenance.claim(c, _TASK, self._holder, _LEASE_S))).value is None:
            return None
        until = time.monotonic() + _ROUND_S
        while work and time.monotonic() < until:
            rule = work.popleft()
            removed = (await self._db.write(partial(self._remove, rule=rule), timeout_s=60)).value
            if removed is None:
                return None
            if removed.number:
                _note(rule, removed)
            if removed.found == expiry.BATCH:
                work.append(rule)
        await self._db.write(lambda c: maintenance.release(c, _TASK, self._holder))
        return not work

    async def _remove(self, c: Connection, rule: Rule) -> Expired | None:
        if not await maintenance.keep(c, _TASK, self._holder, {}, _LEASE_S):
            return None
        return await expiry.remove(c, rule.tenant, rule.kind, rule.days)


def _note(rule: Rule, removed: Expired) -> None:
    REMOVED.labels(rule.tenant, rule.kind).inc(removed.number)
    REMOVED_BYTES.labels(rule.tenant, rule.kind).inc(removed.bytes)
    log.info(
        "retention removed what was too old",
        extra={
            "tenant": rule.tenant,
            "kind": rule.kind,
            "days": rule.days,
            "removed": removed.number,
            "bytes": removed.bytes,
            "watermark": watermark(removed.seq) if removed.seq is not None else None,
        },
    )
