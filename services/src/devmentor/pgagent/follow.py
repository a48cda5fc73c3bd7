"""Following a leader: at once where the histories agree, by pg_rewind where they forked, else by a new copy."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devmentor.pgagent.fence import WHILE_FENCED
from devmentor.pgagent.postgres import LocalError, LocalPostgres
from devmentor.pgagent.settings import Settings
from devmentor.pgagent.state import State, write_durably
from devmentor_ha.lineage import Lineage
from devmentor_ha.rules import NOBODY, Need, Rule
from devmentor_ha.textfiles import parse_lsn, slot_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaderView:
    """What a leader tells a node that wants to follow it."""

    name: str
    address: str
    epoch: int
    lineage: Lineage
    checkpoint_timeline: int
    rules: tuple[Rule, ...]

    @classmethod
    def from_status(cls, status: Mapping[str, Any], address: str) -> "LeaderView":
        """Raises KeyError or TypeError where the leader does not know its own state."""
        return cls(
            name=str(status["node"]),
            address=address,
            epoch=int(status["rule"]["epoch"]),
            lineage=Lineage.from_list(status["lineage"]),
            checkpoint_timeline=int(status["postgres"]["checkpoint_timeline"]),
            rules=tuple(Rule.from_dict(entry) for entry in status["rules"]),
        )


class Follower:
    """Makes this host's PostgreSQL a follower of a leader."""

    def __init__(self, settings: Settings, state: State, postgres: LocalPostgres) -> None:
        self.settings, self.state, self.postgres = settings, state, postgres

    def own_lineage(self, timeline: int) -> Lineage:
        """This node's timelines with the epochs that made them."""
        ends = self.postgres.history(timeline)
        return Lineage.build(ends, timeline, self.state.timelines)

    def remember(self, leader: LeaderView) -> None:
        """Whom it follows, since which epoch, and the epochs of that history's timelines."""
        self.state.set_timelines(leader.lineage.epochs())
        self.state.set_following(leader.epoch, leader.name)

    def is_made_to_follow(self, leader: LeaderView) -> bool:
        """Whether a start is all that this leader's follower lacks."""
        return (
            self.postgres.is_standby_data
            and not self.state.remaking
            and self.state.following == {"epoch": leader.epoch, "leader": leader.name}
            and self.postgres.auto_conf().get("primary_conninfo") == self.settings.leader_conninfo(leader.address)
        )

    async def repoint(self, leader: LeaderView) -> None:
        """A running follower streams from another leader. Raises LocalError where the histories disagree."""
        found = await self.postgres.observe()
        why = self.own_lineage(found["timeline"]).differs_from(leader.lineage, found["lsn"])
        if why:
            raise LocalError(f"cannot follow {leader.name} as it is: {why}")
        stale = self.postgres.stale_histories(leader.lineage.epochs(), self.state.timelines)
        self.remember(leader)
        conninfo = self.settings.leader_conninfo(leader.address)
        if not stale:
            await self.postgres.set({"primary_conninfo": conninfo})
            return
        log.warning("restarts to forget a timeline that nobody leads", extra={"files": [path.name for path in stale]})
        await self.postgres.halt(limit_s=5, immediate_after_s=5)
        for path in stale:
            path.unlink()
        self.postgres.edit_auto_conf({"primary_conninfo": conninfo})
        await self.postgres.start()

    def reconnect(self, leader: LeaderView) -> None:
        """For a server that came up without a connection and is not consistent yet: it lets nobody in, but reloads."""
        self.postgres.edit_auto_conf({"primary_conninfo": self.settings.leader_conninfo(leader.address)})
        self.remember(leader)
        self.postgres.reload()

    def slots(self) -> list[str]:
        """Of the other nodes, named as the role postgres names them."""
        return [slot_name(name) for name in self.settings.nodes if name != self.settings.node]

    async def settle(self, slots: list[str]) -> None:
        """After the hurry: the settings that the fence changed are what the files say again; missing slots are made."""
        if set(self.slots()) - set(slots):
            await self.postgres.have_slots(self.slots())
        now = self.postgres.auto_conf()
        stale = [name for name in WHILE_FENCED if name in now]
        if stale:
            await self.postgres.reset(stale)
        wanted = self.settings.restore_command
        if wanted and now.get("restore_command") != wanted:
            await self.postgres.set({"restore_command": wanted})

    async def plan(self, leader: LeaderView) -> tuple[str, str]:
        """`start`, `rewind` or `reclone`, and why, for a stopped server. Raises LocalError."""
        if not self.postgres.has_data:
            return "reclone", "there is no data here"
        if self.state.remaking:
            return "reclone", "an earlier rewind or copy was interrupted"
        control = await self.postgres.control()
        checkpoint = parse_lsn(control["Latest checkpoint location"])
        recovery = parse_lsn(control.get("Minimum recovery ending location", "0/0"))
        recovery_timeline = int(control.get("Min recovery ending loc's timeline", "0"))
        timeline = max(int(control["Latest checkpoint's TimeLineID"]), recovery_timeline, self.postgres.wal_timeline())
        try:
            own = self.own_lineage(timeline)
            replayed = self.own_lineage(recovery_timeline) if recovery_timeline else own
        except LocalError as error:  # as an interrupted pg_rewind leaves it
            return "reclone", f"its history cannot be read: {error}"
        newest = self.state.newest
        if newest is not None and newest.leader == self.settings.node:
            known = {(rule.key, rule.leader) for rule in leader.rules}
            unknown = newest.epoch >= min(rule.epoch for rule in leader.rules) and (
                (newest.key, newest.leader) not in known
            )
            if unknown and timeline == leader.lineage.timeline:
                return "reclone", f"it wrote rule {newest.name} on timeline {timeline}; {leader.name} has no such rule"
        if own.same_number_other_epoch(leader.lineage):
            return "reclone", f"its timeline {timeline} was made by another epoch than {leader.name}'s"
        # A standby does not start before it has replayed to its minimum recovery point: that must be history, too.
        why = own.differs_from(leader.lineage, checkpoint) or replayed.differs_from(leader.lineage, recovery)
        clean = control.get("Database cluster state") == "shut down"
        if not why and (clean or self.postgres.is_standby_data):
            return "start", "its history is a part of the leader's"
        return "rewind", why or "it stopped without a checkpoint"

    async def unfit(self, leader: LeaderView | None) -> str:
        """Why a stopped server does not become a follower by being started; empty where it may, or nobody can say."""
        if self.state.remaking or not self.postgres.has_data or not self.postgres.is_standby_data:
            return "it stopped, and another node leads"
        if leader is None:
            return ""
        method, why = await self.plan(leader)
        return "" if method == "start" else f"cannot be started as it is: {why}"

    async def rejoin(self, leader: LeaderView, method: str = "auto") -> tuple[str, str]:
        """Bring the stopped server back as a follower. Answers method and reason. Raises LocalError.

        Does not wait until it streams.
        """
        method, why = await self.plan(leader) if method == "auto" else (method, "it was asked for")
        if method == "rewind" and leader.checkpoint_timeline != leader.lineage.timeline:
            raise LocalError(f"{leader.name} has not had its first checkpoint on its new timeline yet")
        log.info("rejoin", extra={"method": method, "why": why, "leader": leader.name, "epoch": leader.epoch})
        if method != "start":
            self.state.remake(True)
        if method == "rewind" and not await self._rewind(leader):
            method, why = "reclone", "pg_rewind failed; its output is in the log"
        if method == "reclone":
            await self._reclone(leader)
        # What rewind or the copy brought is the leader's: connection, promise and quorum are written before the start.
        promise = self.state.promise
        self.postgres.edit_auto_conf(
            {
                "primary_conninfo": self.settings.leader_conninfo(leader.address),
                "restore_command": self.settings.restore_command or None,
                "synchronous_standby_names": Need(1, frozenset({NOBODY})).setting,
                "ha.promised": f"{promise.epoch} {promise.controller}",
                "recovery_target_timeline": None,
                **dict.fromkeys(WHILE_FENCED),
            }
        )
        self.postgres.become_standby()
        for path in self.postgres.stale_histories(leader.lineage.epochs(), self.state.timelines):
            path.unlink()
        self.remember(leader)
        self.state.hold_archive(False)
        self.state.remake(False)
        await self.postgres.start()
        return method, why

    async def _rewind(self, leader: LeaderView) -> bool:
        source = self.settings.leader_conninfo(leader.address, application_name=f"{self.settings.node} rewind")
        code, output = await self.postgres.run(
            [
                str(self.settings.pg_bin_dir / "pg_rewind"),
                f"--target-pgdata={self.postgres.data}",
                f"--source-server={source}",
                f"--config-file={self.settings.pg_config_file}",
            ],
            600,
        )
        log.log(
            logging.INFO if code == 0 else logging.ERROR, "pg_rewind", extra={"status": code, "output": output[-2000:]}
        )
        return code == 0

    async def _reclone(self, leader: LeaderView) -> None:
        data = self.postgres.data
        staging, replaced = data.with_name(f"{data.name}.incoming"), data.with_name(f"{data.name}.replaced")
        for leftover in (staging, replaced):
            if leftover.exists():
                await asyncio.to_thread(shutil.rmtree, leftover)
        code, output = await self.postgres.run(
            [
                str(self.settings.pg_bin_dir / "pg_basebackup"),
                f"--pgdata={staging}",
                f"--dbname={self.settings.leader_conninfo(leader.address, application_name='devmentor copy')}",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-password",
            ],
            24 * 3600,
        )
        if code != 0:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(shutil.rmtree, staging)
            raise LocalError(f"pg_basebackup from {leader.name} failed with {code}: {output[-500:]}")
        write_durably(staging / "standby.signal", "", 0o600)
        if data.exists():
            data.rename(replaced)
        staging.rename(data)
        await asyncio.to_thread(shutil.rmtree, replaced, True)
