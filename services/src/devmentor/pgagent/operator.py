"""What an operator asks for, through the modules: each call takes `check` and then only says what would be."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from devmentor.common.errors import ApiError
from devmentor.pgagent.agent import Agent, refused
from devmentor.pgagent.postgres import LocalError
from devmentor.pgagent.sql import Silent
from devmentor_ha.rules import Rule

if TYPE_CHECKING:
    from devmentor.pgagent.duties import Duties

log = logging.getLogger(__name__)

Body = dict[str, Any]
STREAM_LIMIT_S = 60.0


class Operator:
    """The calls behind the modules."""

    def __init__(self, agent: Agent, duties: "Duties") -> None:
        self._agent = agent
        self._duties = duties

    async def failover(self, body: Body) -> Body:
        loss = body.get("force_data_loss")
        outcome = await self._agent.controller.failover(
            str(body.get("reason") or "asked for by an operator"),
            check=bool(body.get("check")),
            force=bool(body.get("force")),
            target=body.get("target") or None,
            force_data_loss=int(loss) if loss is not None else None,
        )
        return outcome.as_dict()

    async def switchover(self, body: Body) -> Body:
        outcome = await self._agent.controller.switchover(
            body.get("target") or None, check=bool(body.get("check")), deadline_s=float(body.get("deadline_s", 2))
        )
        return outcome.as_dict()

    async def members(self, body: Body) -> Body:
        """Bootstrap, add or remove: a rule change, so only on the leader."""
        agent = self._agent
        leading, node = agent.leading, agent.settings.node
        if body.get("bootstrap"):
            return await self._bootstrap(bool(body.get("check")))
        if leading.rule is None:
            raise refused(f"{node} does not lead; ask the leader")
        rule: Rule = leading.rule
        name = str(body.get("remove") or body.get("add") or "")
        if name not in agent.settings.nodes or name == node:
            raise ApiError(
                400, "invalid_value", f"{name!r} is no other PostgreSQL node ({', '.join(agent.settings.nodes)})"
            )
        if body.get("remove"):
            wanted, removed = rule.followers - {name}, rule.removed | {name}
        else:
            wanted, removed = rule.followers | {name}, rule.removed - {name}
        if not wanted:
            raise refused(f"{name} is the only follower; without it no commit could be acknowledged")
        changes = (wanted, removed) != (rule.followers, rule.removed)
        if not changes or body.get("check"):
            return {"changed": changes, "before": rule.as_dict(), "rule": rule.as_dict()}
        new = await leading.change(wanted, removed)
        return {"changed": True, "before": rule.as_dict(), "rule": new.as_dict()}

    async def _bootstrap(self, check: bool) -> Body:
        agent = self._agent
        await agent.observe()
        known = agent.rules[-1] if agent.rules else agent.state.committed
        if known is not None:
            return {"changed": False, "rule": known.as_dict()}
        await agent.look_around()
        elsewhere = [name for name, status in agent.view.items() if status.get("rule") or status.get("committed")]
        if elsewhere:
            raise refused(f"{', '.join(elsewhere)} know a rule that this node lacks: this is not the first leader")
        if agent.in_recovery is not False or agent.observed is None:
            raise refused(f"{agent.settings.node} does not run as the primary ({agent.server})")
        streaming = sorted(
            row["name"]
            for row in agent.observed["replication"]
            if row["state"] == "streaming" and row["name"] in agent.settings.nodes
        )
        if not streaming:
            raise refused("no replica streams: rule 1.0 would have no follower")
        if check:
            return {"changed": True, "rule": None}
        rule = await agent.leading.bootstrap(streaming)
        return {"changed": True, "rule": rule.as_dict()}

    async def pause(self, body: Body) -> Body:
        before = dict(self._agent.state.paused)
        until, reason = float(body["until"]), str(body.get("reason", ""))
        changed = (until > time.time() or self._agent.state.is_paused) and before["until"] != until
        if changed and not body.get("check"):
            self._agent.state.set_paused(until, reason)
            log.warning("paused" if until > time.time() else "resumed", extra={"until": until, "reason": reason})
        return {"changed": changed, "before": before, "paused": {"until": until, "reason": reason}}

    async def rejoin(self, body: Body) -> Body:
        agent = self._agent
        method = str(body.get("method", "auto"))
        if method not in ("auto", "rewind", "reclone"):
            raise ValueError(f"method {method!r} is none of auto, rewind, reclone")
        rule = agent.state.committed
        if rule is None or rule.leader == agent.settings.node:
            raise refused(f"{agent.settings.node} leads, or knows no leader: there is nobody to follow")
        await agent.look_around()
        leader = agent.leader_view(rule)
        if leader is None:
            raise refused(f"the leader {rule.leader} does not answer, or does not lead yet")
        if method == "auto" and agent.running and agent.observed and agent.observed["streaming"]:
            return {"changed": False, "method": "none", "why": f"it streams from {rule.leader}"}
        if body.get("check"):
            if agent.postgres.process() is None:
                planned, why = await agent.follower.plan(leader)
                return {"changed": True, "method": planned if method == "auto" else method, "why": why}
            return {"changed": True, "method": method, "why": "decided once it is stopped"}
        done = await self._duties.rejoin(leader, "asked for by an operator", method)
        if done is None:
            raise refused(f"{agent.settings.node} could not rejoin; its log says why")
        await self._streams()
        return {"changed": True, "method": done[0], "why": done[1]}

    async def restart(self, body: Body) -> Body:
        """Of a follower: leaders change by switchover first."""
        agent = self._agent
        if agent.in_recovery is not True:
            raise refused(f"{agent.settings.node} does not run as a follower; switch over first")
        if body.get("check"):
            return {"changed": True}
        async with agent.lock:
            agent.busy = "restart"
        try:
            await agent.postgres.halt(limit_s=10, immediate_after_s=30)
            await agent.postgres.start()
        except LocalError as error:
            raise refused(str(error)) from error
        finally:
            agent.busy = ""
        await self._streams()
        return {"changed": True}

    async def _streams(self) -> None:
        agent = self._agent
        deadline = time.monotonic() + STREAM_LIMIT_S
        while time.monotonic() < deadline:
            await agent.observe()
            if agent.running and agent.observed and agent.observed["streaming"]:
                return
            await asyncio.sleep(0.25)
        raise Silent(f"{agent.settings.node} does not stream after {STREAM_LIMIT_S:g} s; its log says why")
