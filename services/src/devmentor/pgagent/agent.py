"""The agent of one host: what it knows, what it answers, and what it does by itself."""

import asyncio
import contextlib
import logging
import os
import time
from typing import Any

from devmentor.common import errors
from devmentor.pgagent import metrics
from devmentor.pgagent.controller import Controller
from devmentor.pgagent.fence import fence
from devmentor.pgagent.follow import Follower, LeaderView
from devmentor.pgagent.leading import Leading
from devmentor.pgagent.peers import Peers
from devmentor.pgagent.pooler import Pooler
from devmentor.pgagent.postgres import LocalError, LocalPostgres
from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Silent
from devmentor.pgagent.state import State
from devmentor_ha.election import DEMOTED
from devmentor_ha.rules import NOBODY, Need, Rule, RuleError
from devmentor_ha.textfiles import parse_lsn

log = logging.getLogger(__name__)

DISK_RESERVE_BYTES = 48 * 1024 * 1024  # three WAL segments
CALL_LIMIT_S = 0.6


class Agent:
    """Calls come in through `app`, `duties` has the loops; `lock` is held while the server's role changes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = State(settings.state_dir)
        self.postgres = LocalPostgres(settings)
        self.follower = Follower(settings, self.state, self.postgres)
        self.peers = Peers(settings)
        self.leading = Leading(self)
        self.controller = Controller(self)
        self.pooler = Pooler(self) if "pgbouncer" in settings.duties else None
        self.lock = asyncio.Lock()
        self.busy = ""  # a long work that keeps the server stopped
        self.acting = ""
        self.suspicion: dict[str, Any] | None = None
        self.view: dict[str, dict[str, Any]] = {}  # the other PostgreSQL nodes' last status
        self.viewed_at = 0.0
        self.observed: dict[str, Any] | None = None
        self.observed_at = 0.0
        self._looked_at = 0.0  # when the look began that `observed` is from
        self.server = "unknown"
        self.demoted_at: float | None = None  # by the monotonic clock
        self.rules: list[Rule] = []
        self.has_postgres = "postgres" in settings.duties

    # What this node knows

    async def observe(self) -> None:
        """Look at the own server."""
        began = time.monotonic()
        try:
            found = await self.postgres.observe()
            rules = await self.postgres.rules() if found["has_rules"] else self.rules
            if began < self._looked_at:
                return  # another look began later and is done: this one may be from before a promotion
            self._looked_at, self.rules = began, rules
            self.observed, self.observed_at, self.server = found, time.monotonic(), "running"
        except (Silent, RuleError) as error:
            if began < self._looked_at:
                return
            self._looked_at = began
            self.server = "stopped" if self.postgres.process() is None else "silent"
            if "starting up" in str(error) or "not yet accepting" in str(error):
                self.server = "starting"
            return
        if self.rules:
            self.state.know_newest(self.rules[-1])
            floor = min(rule.prior for rule in self.rules if rule.key == self.rules[-1].key)
            for rule in self.rules:
                if rule.key == floor and self.state.know_committed(rule):
                    log.info("committed rule learnt from the WAL", extra={"rule": rule.name})

    @property
    def running(self) -> bool:
        """Whether the server answered within the last two seconds."""
        return self.server == "running" and time.monotonic() - self.observed_at < 2.0

    @property
    def in_recovery(self) -> bool | None:
        """None where it is not known."""
        return bool(self.observed["in_recovery"]) if self.running and self.observed else None

    @property
    def unwell(self) -> str:
        """Why this node's server should be replaced though it answers."""
        try:
            found = os.statvfs(self.postgres.data / "pg_wal")
        except OSError as error:
            return f"its data directory cannot be read: {error.strerror}" if self.running else ""
        return "disk full" if found.f_bavail * found.f_frsize < DISK_RESERVE_BYTES else ""

    def status(self) -> dict[str, Any]:
        """From memory: it answers while PostgreSQL does not."""
        settings, state = self.settings, self.state
        status: dict[str, Any] = {
            "node": settings.node,
            "duties": settings.duties,
            "now": time.time(),
            "observe_only": settings.observe_only,
            "paused": state.paused,
            "acting": self.acting or self.busy,
        }
        if self.pooler is not None:
            status["pooler"] = self.pooler.status()
        if not self.has_postgres:
            return status
        newest = self.rules[-1] if self.rules and self.server == "running" else state.newest
        observed = {key: value for key, value in (self.observed or {}).items() if key != "primary_conninfo"}
        status.update(
            {
                "promise": {
                    "epoch": state.promise.epoch,
                    "controller": state.promise.controller,
                    "at": state.promise.at,
                },
                "rule": newest.as_dict() if newest else None,
                "rules": [rule.as_dict() for rule in self.rules],
                "committed": state.committed.as_dict() if state.committed else None,
                "leading": self.leading.rule.as_dict() if self.leading.rule else None,
                "committing": self.leading.committing.as_dict() if self.leading.committing else None,
                "waits_since": self.leading.waits_since,
                "following": state.following,
                "suspects": self.suspicion,
                "unwell": self.unwell,
                "writes_blocked": self.in_recovery is False and self.leading.blocked,
                "lineage": self._lineage(),
                "postgres": {
                    **observed,
                    "state": self.server,
                    "age_s": round(time.monotonic() - self.observed_at, 3) if self.observed else None,
                },
            }
        )
        return status

    def _lineage(self) -> list[dict[str, Any]] | None:
        if not self.observed:
            return None
        try:
            return self.follower.own_lineage(self.observed["timeline"]).as_list()
        except LocalError:
            return None

    def leader_status(self, rule: Rule) -> dict[str, Any]:
        """What a follower needs of this node as its leader to be, whose row is about to be written."""
        return {**self.status(), "rule": rule.as_dict()}

    # What others may ask (a refusal is errors.ApiError with 409)

    async def fence(self, epoch: int, controller: str) -> dict[str, Any]:
        """Promise, then fence. 409 `promised` where another promise stands in the way."""
        if self.busy:  # for long, with the lock held: a fence that came late would be one for nothing
            raise refused(f"PostgreSQL of {self.settings.node} does not run ({self.busy})")
        async with self.lock:
            self._admit(epoch, controller)
            if self.busy or self.postgres.process() is None:
                raise refused(f"PostgreSQL of {self.settings.node} does not run ({self.busy or 'stopped'})")
            self._promise(epoch, controller)
            try:
                answer = await fence(self.postgres, epoch, controller)
                rules = await self.postgres.rules()
            except Silent as silent:
                raise refused(str(silent)) from silent
            log.info("fenced", extra={"epoch": epoch, "controller": controller, **answer})
        return {**answer, **self._known(rules)}

    def _known(self, rules: list[Rule]) -> dict[str, Any]:
        committed = self.state.committed
        return {
            "rules": [rule.as_dict() for rule in rules],
            "committed": committed.as_dict() if committed else None,
        }

    async def demote(self, epoch: int, controller: str) -> dict[str, Any]:
        """Promise, stop this node's server fast, and say where its WAL ends."""
        async with self.lock:
            self._admit(epoch, controller)
            if self.in_recovery is not False:
                raise refused(f"{self.settings.node} does not lead")
            self._promise(epoch, controller)
            rules = await self.postgres.rules()
            self.busy = f"demoted {epoch}"
            log.info("demote", extra={"epoch": epoch, "controller": controller})
            try:
                await self.postgres.stop(limit_s=5, immediate_after_s=20)
                control = await self.postgres.control()
                if control.get("Database cluster state") != "shut down":
                    raise refused(f"{self.settings.node} did not stop cleanly: {control.get('Database cluster state')}")
                self.postgres.edit_auto_conf({"synchronous_standby_names": Need(1, frozenset({NOBODY})).setting})
            except LocalError as error:
                raise refused(str(error)) from error
            finally:
                self.server, self.busy, self.demoted_at = "stopped", "", time.monotonic()
            return {
                "mode": DEMOTED,
                "lsn": parse_lsn(control["Latest checkpoint location"]) + 1,  # a byte of the record itself
                "timeline": int(control["Latest checkpoint's TimeLineID"]),
                **self._known(rules),
            }

    def _admit(self, epoch: int, controller: str) -> None:
        promise = self.state.promise
        if self.settings.observe_only:
            raise refused(f"{self.settings.node} only observes (pgagent_observe_only)")
        if not promise.admits(epoch, controller):
            raise errors.ApiError(
                409, "promised", f"{self.settings.node} promised {promise.epoch} to {promise.controller}"
            )

    def _promise(self, epoch: int, controller: str) -> None:
        self.state.set_promise(epoch, controller)
        self.leading.stop()

    async def lead(self, epoch: int, controller: str, rule: Rule, need: Need, fenced: list[str]) -> None:
        """The candidate goes on by itself from here."""
        self._exactly(epoch, controller)
        log.info("lead", extra={"epoch": epoch, "controller": controller, "rule": rule.name})
        self.leading.begin(epoch, controller, rule, need, fenced)

    async def repoint(self, epoch: int, controller: str, leader: dict[str, Any]) -> None:
        """Stream from the leader of the epoch that this node promised; a former leader, stopped or not, rejoins it."""
        async with self.lock:
            self._exactly(epoch, controller)
            view = LeaderView.from_status(leader, self.settings.nodes[leader["node"]].address)
            try:
                if self.postgres.process() is not None and self.in_recovery is not False:
                    try:
                        await self.follower.repoint(view)
                        return
                    except LocalError as error:
                        log.warning("cannot follow as it is", extra={"leader": view.name, "reason": str(error)})
                        if view.checkpoint_timeline != view.lineage.timeline:
                            raise  # asked again after the leader's checkpoint; it runs on until then
                if self.postgres.process() is None and self.follower.is_made_to_follow(view):
                    await self.postgres.start()  # an earlier call did all else; its start is not to be ended
                    return
                self.busy = "rejoin"
                await self.postgres.halt(limit_s=5, immediate_after_s=5)
                await self.follower.rejoin(view)
            except (LocalError, Silent) as error:
                raise refused(str(error)) from error
            finally:
                self.busy = ""

    def _exactly(self, epoch: int, controller: str) -> None:
        promise = self.state.promise
        if (promise.epoch, promise.controller) != (epoch, controller):
            raise errors.ApiError(
                409, "promised", f"{self.settings.node} promised {promise.epoch} to {promise.controller}"
            )

    # What it asks others

    async def look_around(self, but: str = "", limit_s: float = CALL_LIMIT_S) -> None:
        """The other PostgreSQL nodes' statuses (`but` one, of which the last answer stands), and what they know to be
        committed."""
        others = [name for name in self.settings.nodes if name not in (self.settings.node, but)]
        answers, failures = await self.peers.many(others, "status", limit_s=limit_s)
        for name in failures:
            self.view.pop(name, None)
        self.view.update(answers)
        self.viewed_at = time.monotonic()
        for name, status in answers.items():
            with contextlib.suppress(RuleError, TypeError):
                if status.get("committed") and self.state.know_committed(Rule.from_dict(status["committed"])):
                    log.info("committed rule learnt", extra={"rule": status["committed"], "from": name})

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Of all PostgreSQL nodes that answered, this one included where it is one."""
        own = {self.settings.node: self.status()} if self.has_postgres else {}
        return {**self.view, **own}

    def leader_view(self, rule: Rule) -> LeaderView | None:
        """The leader of a committed rule, where it answers and leads."""
        status = self.view.get(rule.leader)
        if not status or not status.get("leading"):
            return None
        try:
            if Rule.from_dict(status["leading"]).epoch != rule.epoch:
                return None
            return LeaderView.from_status(status, self.settings.nodes[rule.leader].address)
        except (KeyError, TypeError, ValueError):
            return None

    async def lead_poolers(self, rule: Rule) -> None:
        """Push; what does not answer pulls later."""
        poolers = list(self.settings.cluster["pgbouncer"])
        replicas = sorted(rule.followers)
        body = {"rule": rule.as_dict(), "replicas": replicas}
        answers, failures = await self.peers.many(poolers, "retarget", body, limit_s=5.0)
        log.info("poolers led", extra={"rule": rule.name, "done": sorted(answers), "failed": sorted(failures)})

    def publish(self) -> None:
        """The metrics."""
        state, leading = self.state, self.leading.rule
        if self.has_postgres:
            metrics.LEADING.set(leading is not None and self.in_recovery is False)
            metrics.EPOCH.set(state.committed.epoch if state.committed else 0)
            metrics.PROMISE.set(state.promise.epoch)
            metrics.FOLLOWERS.set(len(state.committed.followers) if state.committed else 0)
            metrics.BLOCKED.set(self.in_recovery is False and self.leading.blocked)
            metrics.SUSPECTING.set(self.suspicion is not None)
            metrics.ARCHIVE_HELD.set(state.archive_held)
        metrics.PAUSED.set(state.is_paused)
        metrics.OBSERVE_ONLY.set(self.settings.observe_only)
        if self.pooler is not None:
            metrics.POOLER_EPOCH.set(self.pooler.epoch)

    async def close(self) -> None:
        """Leave everything as it is; the next start finds it."""
        self.leading.stop()
        await self.peers.close()


def refused(reason: str) -> errors.ApiError:
    """409 with what is in the way."""
    return errors.ApiError(409, "refused", reason)
