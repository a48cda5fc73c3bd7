"""The candidate's part: promote, bring the followers, commit the rule row, lead the poolers; and later changes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from devmentor.pgagent.fence import WHILE_FENCED
from devmentor.pgagent.peers import CallFailed
from devmentor.pgagent.postgres import SCHEMA
from devmentor.pgagent.sql import Silent, bounded, connect, sever
from devmentor_ha.rules import NOBODY, Need, Rule, changed_followers, final_need, first_rule, transition

if TYPE_CHECKING:
    from devmentor.pgagent.agent import Agent

log = logging.getLogger(__name__)

NOBODY_NEED = Need(1, frozenset({NOBODY}))
LAG_LIMIT_BYTES = 16 * 1024 * 1024
FINISH_EVERY_S = 10.0

WRITE_RULE = """
INSERT INTO ha.rule (epoch, sub, leader, followers, w, prior_epoch, prior_sub, removed)
VALUES (%(epoch)s, %(sub)s, %(leader)s, %(followers)s, %(w)s, %(prior_epoch)s, %(prior_sub)s, %(removed)s)
ON CONFLICT (epoch, sub, leader) DO UPDATE SET written_at = now()
"""


class Superseded(Exception):
    """A higher epoch was promised meanwhile: whatever was under way stops here."""


class Leading:
    """Owned by the agent; `rule` is the committed rule that this node leads, None where it does not lead."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self.rule: Rule | None = None
        self.committing: Rule | None = None
        self._waits_since = 0.0
        self._task: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._finish_began_at = 0.0
        self._absent_since: dict[str, float] = {}
        self._present_since: dict[str, float] = {}

    @property
    def waits_since(self) -> float | None:
        """Since when (seconds since 1970) a rule row waits for its quorum; None where none does."""
        return self._waits_since if self.committing is not None else None

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def stop(self) -> None:
        """This node leads no more, and whatever it was about to commit is not its business any more."""
        for task in (self._task, self._finishing):
            if task is not None:
                task.cancel()
        self.rule = self.committing = None

    def begin(self, epoch: int, controller: str, rule: Rule, need: Need, fenced: Iterable[str]) -> None:
        """Lead by `rule`, in the background."""
        self.stop()
        self._task = asyncio.create_task(self._guarded(self._lead(epoch, controller, rule, need, list(fenced))))

    def resume(self, rules: Sequence[Rule]) -> None:
        """Commit the newest row of this node's WAL, of which it is not known whether it was committed."""
        new = rules[-1]
        old = [rule for rule in rules if (rule.key, rule.leader) != (new.key, new.leader)] or [new]
        self._task = asyncio.create_task(self._guarded(self._commit(new, transition(old, new), NOBODY_NEED)))

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except (Silent, Superseded, psycopg.Error, OSError, TimeoutError) as error:
            log.error("leading stopped", extra={"reason": f"{type(error).__name__}: {error}"})

    def _check(self, epoch: int, controller: str | None = None) -> None:
        promise = self._agent.state.promise
        if promise.epoch > epoch or (controller is not None and promise.controller != controller):
            raise Superseded(f"epoch {epoch} was superseded by {promise.epoch} of {promise.controller}")

    async def _lead(self, epoch: int, controller: str, rule: Rule, need: Need, fenced: list[str]) -> None:
        agent = self._agent
        postgres, state = agent.postgres, agent.state
        step = {"epoch": epoch, "rule": rule.name}
        self.committing, self._waits_since = rule, time.time()  # from now on others hold back
        try:
            async with agent.lock:
                self._check(epoch, controller)
                await postgres.set({"synchronous_standby_names": NOBODY_NEED.setting})
                await postgres.have_slots(agent.follower.slots())
                if await postgres.value("SELECT pg_is_in_recovery()"):
                    state.hold_archive(True)
                    log.info("promote", extra={**step, "waits_for": need.setting})
                    await postgres.promote(10.0)
                    found = await postgres.observe()
                    state.set_timelines({**state.timelines, str(found["timeline"]): epoch})
                    state.set_following(epoch, agent.settings.node)
        except Exception:
            self.committing = None
            raise
        await agent.observe()
        followers = [node for node in fenced if node != agent.settings.node]
        repoints = [asyncio.create_task(self._repoint(node, epoch, controller, rule)) for node in followers]
        # A follower that has to rewind can do so after this checkpoint only, and may be needed for the quorum.
        repoints.append(asyncio.create_task(self._checkpoint(after_s=0.0 if len(rule.followers) == 1 else 2.0)))
        try:
            await self._commit(rule, need, NOBODY_NEED)
        finally:
            for task in repoints:
                task.cancel()
        # Not in this task: a checkpoint may take minutes, and the leader's duties do not wait for it.
        self._finish()

    def finish(self, observed: Mapping[str, Any]) -> None:
        """What follows a promotion, where it was broken off: until the first checkpoint nobody can be rewound."""
        if time.monotonic() - self._finish_began_at < FINISH_EVERY_S:
            return
        if self._finishing is not None and not self._finishing.done():
            return
        now = self._agent.postgres.auto_conf()
        unrestored = bool(self._agent.settings.restore_command) and now.get("restore_command") == ""
        first = observed["checkpoint_timeline"] != observed["writes_timeline"]
        if first or unrestored or WHILE_FENCED.keys() & now.keys():
            self._finish(first)

    def _finish(self, checkpoint: bool = True) -> None:
        self._finish_began_at = time.monotonic()
        self._finishing = asyncio.create_task(self._guarded(self._afterwards(checkpoint)))

    async def _repoint(self, node: str, epoch: int, controller: str, rule: Rule) -> None:
        while True:
            body = {"epoch": epoch, "controller": controller, "leader": self._agent.leader_status(rule)}
            try:
                await self._agent.peers.call(node, "repoint", body, limit_s=30.0 if len(rule.followers) == 1 else 3.0)
                log.info("repointed", extra={"follower": node, "epoch": epoch})
                return
            except CallFailed as failure:
                log.warning("a follower refuses", extra={"follower": node, "reason": str(failure)})
                if failure.body.get("error", {}).get("code") == "promised":
                    return
            await asyncio.sleep(0.3)

    async def _commit(self, rule: Rule, need: Need, meanwhile: Need) -> None:
        """The commit point: the row is flushed by `need`. Afterwards the final setting, and the poolers.

        `meanwhile`: what clients' commits wait for until then. A new leader has them wait for a node that is none: one
        that was acknowledged before the row would be ranked by its LSN alone in the next election.
        """
        agent = self._agent
        # Settings of a leader change under the lock alone: a fence, which holds it, is never overwritten.
        async with agent.lock:
            self._check(rule.epoch)
            self.committing, self._waits_since = rule, time.time()
            await agent.postgres.set({"synchronous_standby_names": meanwhile.setting})
        lsn = await self._write(rule)
        while not need.met_by(await self._flushed(lsn)):
            self._check(rule.epoch)
            await asyncio.sleep(0.02)
        async with agent.lock:
            self._check(rule.epoch)
            await agent.postgres.set({"synchronous_standby_names": final_need(rule).setting})
            agent.state.know_committed(rule)
            agent.state.hold_archive(False)
            self.rule, self.committing = rule, None
            self._absent_since.clear()
            self._present_since.clear()
        log.info("rule committed", extra={"rule": rule.name, "followers": sorted(rule.followers)})
        await agent.observe()
        await agent.lead_poolers(rule)

    async def _write(self, rule: Rule) -> int:
        """Write (or touch) the row, flushed here alone. Answers the end of this node's WAL in bytes.

        It does not wait for replicas itself: a statement that waits keeps its row's lock when it is given up, and a
        setting that acknowledges the row would acknowledge clients before it.
        """
        connection = await connect(self._agent.postgres.conninfo, 3.0)
        try:

            async def write() -> int:
                await connection.execute("SET synchronous_commit = local")
                for statement in SCHEMA if rule.key == (1, 0) else ():
                    await connection.execute(statement)
                await connection.execute(WRITE_RULE, rule.as_dict())
                cursor = await connection.execute("SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")
                row = await cursor.fetchone()
                assert row is not None
                return int(row[0])

            return await bounded(connection, write(), 10.0)
        finally:
            sever(connection)

    async def _flushed(self, lsn: int) -> set[str]:
        """The followers that have flushed this node's WAL up to there."""
        rows = await self._agent.postgres.rows(
            "SELECT application_name FROM pg_stat_replication WHERE flush_lsn - '0/0'::pg_lsn >= %s", (lsn,)
        )
        return {str(name) for (name,) in rows}

    async def _checkpoint(self, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        with contextlib.suppress(Silent):
            await self._agent.postgres.checkpoint()

    async def _afterwards(self, checkpoint: bool) -> None:
        postgres = self._agent.postgres
        with contextlib.suppress(Silent):
            if checkpoint:
                await postgres.checkpoint()
                # A later promotion renames this timeline's last segment to .partial. Where this one began in the same
                # segment, a follower two timelines behind would find its beginning nowhere, not even in the archive.
                await postgres.rows("SELECT pg_switch_wal()")
        restore = self._agent.settings.restore_command
        with contextlib.suppress(Silent):
            await postgres.reset(list(WHILE_FENCED))
            if restore:
                await postgres.set({"restore_command": restore})
        await self._agent.observe()

    # Once it leads

    async def bootstrap(self, followers: list[str]) -> Rule:
        """Rule 1.0, for a cluster that has none. Raises TimeoutError where it is not acknowledged."""
        rule = first_rule(self._agent.settings.node, followers)
        await self._commit(rule, final_need(rule), final_need(rule))
        return rule

    async def change(self, followers: Iterable[str], removed: Collection[str] | None = None) -> Rule:
        """The same leader, other followers. Raises Silent where it is not committed, or another change is under way."""
        assert self.rule is not None
        if self.busy or self.committing is not None:
            raise Silent(f"rule {(self.committing or self.rule).name} is being committed; ask again in a moment")
        new = changed_followers(self.rule, followers, removed)
        await asyncio.wait({self._change(new)})
        if self.rule != new:
            raise Silent(f"rule {new.name} is not committed; the leader's log says why")
        return new

    def _change(self, new: Rule) -> "asyncio.Task[None]":
        """In the background: acknowledged under the old quorum and the new one."""
        assert self.rule is not None
        log.info("change of followers", extra={"rule": new.name, "followers": sorted(new.followers)})
        need = transition([self.rule], new)
        self.committing, self._waits_since = new, time.time()
        self._task = asyncio.create_task(self._guarded(self._commit(new, need, need)))
        return self._task

    async def tend(self, replication: list[dict[str, Any]]) -> None:
        """Shrink at a lasting loss, grow where a node is back; one change at a time."""
        rule, agent = self.rule, self._agent
        if rule is None or self.busy:
            return
        now = time.monotonic()
        streaming = _streaming(replication)
        for node in agent.settings.nodes:
            if node == agent.settings.node:
                continue
            if node in streaming:
                self._absent_since.pop(node, None)
                self._present_since.setdefault(node, now)
            else:
                self._present_since.pop(node, None)
                self._absent_since.setdefault(node, now)
        if self.committing is not None:
            # A change that broke off: its row may be written, and would not say what another of its number says.
            self._change(self.committing)
            return
        if not final_need(rule).met_by(streaming):
            return  # nothing can be acknowledged: neither can a change
        settings = agent.settings
        joining = sorted(
            node
            for node, since in self._present_since.items()
            if node not in rule.followers and now - since >= settings.grow_after_s and node not in rule.removed
        )
        leaving = sorted(
            node
            for node, since in self._absent_since.items()
            if node in rule.followers and now - since >= settings.shrink_after_s
        )
        if joining:
            wanted = rule.followers | {joining[0]}
        elif leaving and len(rule.followers) > 1:
            wanted = rule.followers - {leaving[0]}
        else:
            return
        self._change(changed_followers(rule, wanted))

    @property
    def blocked(self) -> bool:
        """Whether commits wait for a quorum that does not stream."""
        observed = self._agent.observed
        if self.committing is not None or self.rule is None or observed is None:
            return self.committing is not None
        return not final_need(self.rule).met_by(_streaming(observed["replication"]))


def _streaming(replication: list[dict[str, Any]]) -> set[str]:
    """The followers of pg_stat_replication that stream without lag."""
    return {
        entry["name"]
        for entry in replication
        if entry["state"] == "streaming" and (entry["lag_bytes"] or 0) < LAG_LIMIT_BYTES
    }
