"""What an agent does without being asked, one loop for each: look, probe, act."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from devmentor.common import tasks
from devmentor.pgagent.elections import promised_for, under_way
from devmentor.pgagent.follow import LeaderView
from devmentor.pgagent.postgres import LocalError
from devmentor.pgagent.probe import Probe
from devmentor.pgagent.sql import Silent, fresh_rows
from devmentor.pgagent.starting import Starter
from devmentor_ha.rules import Rule, final_need
from devmentor_ha.textfiles import slot_name

if TYPE_CHECKING:
    from devmentor.pgagent.agent import Agent

log = logging.getLogger(__name__)

STAGGER_S = 0.4
RECENT_S = 3.0
STUCK_S = 60.0
ASK_AGAIN_S = 5.0


class Duties:
    """The loops of one agent. `beats` tells the watchdog that they go round."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._tasks: list[asyncio.Task[None]] = []
        self._probe: Probe | None = None
        self.starter = Starter(agent, self._rejoin)
        self._quorum_since = 0.0
        self._stuck_since = 0.0
        self._asked_again_at = 0.0
        self._long: asyncio.Task[tuple[str, str] | None] | None = None
        self.beats: dict[str, float] = {}

    def begin(self) -> None:
        """Start the loops."""
        agent = self._agent
        loops = [("look", self._look, 1.0)]
        if agent.has_postgres:
            loops += [("observe", agent.observe, 0.5), ("probe", self._probe_once, agent.settings.probe_interval_s)]
            loops += [("act", self._act, 0.1), ("serve", self._serve, 0.5)]
        if agent.pooler is not None:
            loops += [("pooler", self._follow_rule, 1.0)]
        for name, work, every_s in loops:
            self._tasks.append(asyncio.create_task(self._loop(name, work, every_s), name=name))

    async def end(self) -> None:
        if self._long is not None:
            self._long.cancel()
        self._drop_probe()
        await tasks.end(*self._tasks)

    @property
    def alive(self) -> bool:
        """Whether every loop has gone round within the last 60 s."""
        return all(time.monotonic() - beat < 60 for beat in self.beats.values())

    async def _loop(self, name: str, work: object, every_s: float) -> None:
        assert callable(work)
        while True:
            began = time.monotonic()
            self.beats[name] = began
            try:
                await work()
            except (Silent, LocalError) as error:
                log.warning(f"{name}: {error}")
            except Exception:
                log.exception(f"{name}: unexpected")
            await asyncio.sleep(max(0.02, every_s - (time.monotonic() - began)))

    # Look

    async def _look(self) -> None:
        await self._agent.look_around()
        self._agent.publish()

    async def _follow_rule(self) -> None:
        agent = self._agent
        assert agent.pooler is not None
        rule = agent.state.committed
        await agent.pooler.follow(rule, sorted(rule.followers) if rule else [])

    # Probe

    async def _probe_once(self) -> None:
        """Only a running follower of the committed rule probes; a node without a server is no witness."""
        agent = self._agent
        rule = agent.state.committed
        if rule is None or agent.settings.node not in rule.followers or agent.in_recovery is not True:
            self._drop_probe()
            return
        if self._probe is None or self._probe.leader != rule.leader:
            self._drop_probe()
            self._probe = Probe(agent.settings, rule.leader, agent.settings.nodes[rule.leader].address)
        await self._probe.once(str(agent.view.get(rule.leader, {}).get("unwell", "")))
        suspicion = self._probe.suspicion
        if suspicion is not None and not self._settled():
            suspicion = None  # just started: the leader may be starting too
        if (suspicion is None) != (agent.suspicion is None):
            log.warning("suspects the leader" if suspicion else "suspects nobody", extra=suspicion or {})
        agent.suspicion = suspicion

    def _settled(self) -> bool:
        """Not where this host was switched on a moment ago: the leader's may have been, too, and be slower."""
        agent = self._agent
        assert self._probe is not None
        if self._probe.succeeded_at:
            return True
        return time.time() - booted_at() > agent.settings.startup_grace_s

    def _drop_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        self._agent.suspicion = None

    # Act: an automatic failover

    async def _act(self) -> None:
        agent = self._agent
        rule = agent.state.committed
        if agent.suspicion is None or rule is None or agent.controller.busy:
            self._quorum_since = 0.0
            return
        await agent.look_around(but=rule.leader, limit_s=0.3)  # the leader is silent: asking it would only take time
        statuses = agent.statuses()
        paused = any(status["paused"]["until"] > time.time() for status in statuses.values())
        statuses.pop(rule.leader, None)  # said before it was silent, perhaps
        suspecting = [
            name
            for name, status in statuses.items()
            if name in rule.followers and (status.get("suspects") or {}).get("leader") == rule.leader
        ]
        if len(suspecting) < rule.r or agent.settings.node not in suspecting:  # it may have recovered while we asked
            self._quorum_since = 0.0
            return
        now = time.monotonic()
        self._quorum_since = self._quorum_since or now
        nodes = agent.settings.nodes
        rank = sorted(suspecting, key=lambda name: (-nodes[name].priority, name)).index(agent.settings.node)
        others = [status for status in statuses.values() if status["promise"]["epoch"] > rule.epoch]
        if any(promised_for(status) < RECENT_S for status in others) or under_way(statuses, rule):
            return  # somebody is at it
        if now - self._quorum_since < rank * STAGGER_S:
            return
        why = f"{', '.join(sorted(suspecting))} suspect {rule.leader}: {agent.suspicion['reason']}"
        if agent.settings.observe_only or paused:
            log.warning("no failover: paused or observing only", extra={"would": why})
            await asyncio.sleep(1)
            return
        outcome = await agent.controller.failover(why, force=True, statuses=statuses)
        if outcome.result != "done":
            await asyncio.sleep((2.0 if outcome.result == "refused" else 0.5) + rank * STAGGER_S)

    # Serve: whatever the own server needs

    async def _serve(self) -> None:
        agent = self._agent
        if agent.settings.observe_only or agent.state.is_paused or self._working():
            return
        if agent.busy or agent.lock.locked():
            return
        if agent.server != "stopped":
            self.starter.decided()
        if agent.running and agent.in_recovery is False:
            await self._lead()
        elif agent.running:
            await self._follow()
        elif agent.server == "stopped" and agent.postgres.process() is None:
            await self.starter.bring_back()
        elif agent.postgres.is_standby_data:
            self._reconnect()

    def _working(self) -> bool:
        return self._long is not None and not self._long.done()

    async def _lead(self) -> None:
        agent = self._agent
        state, leading = agent.state, agent.leading
        rule = state.committed
        if leading.busy:
            waits = leading.committing
            if waits is not None and rule is not None and rule.epoch > waits.epoch:
                leading.stop()  # others committed a later rule without this node
            elif waits is None or time.time() - (leading.waits_since or 0) < agent.settings.reaffirm_after_s:
                return
        # With a higher promise of its own this node may be a candidate, whose row is not written yet.
        if rule is not None and rule.leader != agent.settings.node and state.promise.epoch <= rule.epoch:
            newest = state.newest
            if newest is None or newest.leader != agent.settings.node or newest.epoch < rule.epoch:
                self._rejoin(rule, f"superseded by rule {rule.name}")
                return
        if not agent.rules:
            return
        newest = agent.rules[-1]
        if newest.leader != agent.settings.node:
            return  # it cannot acknowledge anything, and somebody will be chosen
        above = [
            status
            for status in agent.statuses().values()
            if status["promise"]["epoch"] > newest.epoch  # of any node: one that left the rule could not come back
        ]
        if above:
            waited = min(map(promised_for, above))
            busy = agent.controller.busy or under_way(agent.statuses(), newest)
            if waited > agent.settings.reaffirm_after_s and not busy:
                outcome = await agent.controller.failover("fenced, and nobody leads", reaffirm=True)
                if outcome.result == "refused":
                    await asyncio.sleep(2)
            return
        if leading.busy:
            return
        if leading.rule is None:
            assert agent.observed is not None
            names = str(agent.observed["synchronous_standby_names"])
            # The setting alone proves nothing: a rule's need may be the same before and after its commit.
            if names == final_need(newest).setting and state.committed == newest:
                leading.rule = newest
                state.know_committed(newest)
                state.hold_archive(False)
                log.info("leads", extra={"rule": newest.name})
                await agent.lead_poolers(newest)
            elif newest.leader == agent.settings.node:
                leading.resume(agent.rules)
            return
        assert agent.observed is not None
        leading.finish(agent.observed)
        await leading.tend(agent.observed["replication"])

    async def _follow(self) -> None:
        agent = self._agent
        rule = agent.state.committed
        if agent.leading.busy:
            return  # a candidate, about to be promoted
        if agent.leading.rule is not None:
            agent.leading.stop()
        if rule is None or rule.leader == agent.settings.node or agent.state.promise.epoch > rule.epoch:
            return
        leader = agent.leader_view(rule)
        assert agent.observed is not None
        address = agent.settings.nodes[rule.leader].address
        follows = agent.state.following
        right = follows["leader"] == rule.leader and f"host='{address}'" in agent.observed["primary_conninfo"]
        if not right or agent.observed["streaming"]:
            self._stuck_since = self._asked_again_at = 0.0
        if right and agent.observed["streaming"]:
            # It has streamed on over a change of the rule, and perhaps of the timeline: the history is this leader's.
            if follows["epoch"] < rule.epoch and leader is not None:
                agent.follower.remember(leader)
            async with agent.lock:
                if agent.state.promise.epoch <= rule.epoch:
                    await agent.follower.settle([slot["name"] for slot in agent.observed["slots"]])
            return
        if leader is None:
            self._stuck_since = 0.0  # that nobody lets it stream is not for want of WAL
            return
        own = slot_name(agent.settings.node)
        lost = any(s["name"] == own and s["wal_status"] == "lost" for s in agent.view[rule.leader]["postgres"]["slots"])
        if right and lost:
            self._rejoin(rule, "its slot lost its WAL", "reclone")
            return
        if right and await self._waits_for_the_stream(rule):
            return
        try:
            async with agent.lock:
                if agent.state.promise.epoch > rule.epoch:
                    return
                await agent.follower.repoint(leader)
            log.info("follows", extra={"leader": rule.leader, "epoch": rule.epoch})
        except LocalError as error:
            self._rejoin(rule, str(error), "rewind")

    async def _waits_for_the_stream(self, rule: Rule) -> bool:
        """Connected to the right leader and not streaming: whether there is nothing to do but wait.

        The histories are compared again each 5 s. A node that the rule does without, and whose leader answers it, lacks
        WAL that nobody has any more: after a minute it is copied anew.
        """
        agent, now = self._agent, time.monotonic()
        self._stuck_since = self._stuck_since or now
        if now - self._stuck_since > STUCK_S and agent.settings.node not in rule.followers:
            conninfo = agent.settings.leader_conninfo(agent.settings.nodes[rule.leader].address)
            self._stuck_since = 0.0
            await fresh_rows(conninfo, "SELECT 1", 2.0, f"{rule.leader}'s PostgreSQL")
            self._rejoin(rule, f"it did not stream for {STUCK_S:g} s, though {rule.leader} answers", "reclone")
            return True
        if now - self._asked_again_at < ASK_AGAIN_S:
            return True
        self._asked_again_at = now
        return False

    def _reconnect(self) -> None:
        """The guard cleared its connection, and without one it never becomes consistent: nobody is let in to set it."""
        agent = self._agent
        rule = agent.state.committed
        if rule is None or rule.leader == agent.settings.node or agent.state.promise.epoch > rule.epoch:
            return
        leader = agent.leader_view(rule)
        if leader is not None and agent.postgres.auto_conf().get("primary_conninfo") == "":
            log.warning("connects a server that lets nobody in", extra={"leader": rule.leader, "epoch": rule.epoch})
            agent.follower.reconnect(leader)

    def _rejoin(self, rule: Rule, why: str, method: str = "auto") -> None:
        leader = self._agent.leader_view(rule)
        if leader is None or self._working():
            return
        self._long = asyncio.create_task(self.rejoin(leader, why, method))

    async def rejoin(self, leader: LeaderView, why: str, method: str = "auto") -> tuple[str, str] | None:
        """Stop, bring in line, start as a follower. The server is kept stopped where that fails; then None."""
        agent = self._agent
        log.info("rejoins", extra={"leader": leader.name, "epoch": leader.epoch, "reason": why})
        agent.leading.stop()
        async with agent.lock:
            if agent.busy:  # a second copy would remove what the first one has copied
                log.warning("rejoins no second time", extra={"leader": leader.name, "busy": agent.busy})
                return None
            if agent.state.promise.epoch > leader.epoch:
                return None
            if agent.state.promise.epoch < leader.epoch:  # or a candidate of a lower epoch could take it out again
                agent.state.set_promise(leader.epoch, f"follows {leader.name}")
            agent.busy = "rejoin"
        try:
            await agent.postgres.halt(limit_s=5, immediate_after_s=5)
            return await agent.follower.rejoin(leader, method)
        except (LocalError, Silent, OSError, KeyError, ValueError) as error:
            log.error("rejoin failed", extra={"reason": str(error)})
            await asyncio.sleep(1)
            return None
        finally:
            agent.busy = ""
            with contextlib.suppress(Silent):
                await agent.observe()


def booted_at() -> float:
    """When this host's systemd came up, in seconds since 1970; 0 where that cannot be told (/proc/1 is hidden)."""
    try:
        return Path("/run/systemd/private").stat().st_ctime
    except OSError:
        return 0.0
