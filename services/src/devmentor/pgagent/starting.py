"""A server that is stopped: whether it may be started, as what, and the start itself."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from devmentor.pgagent.elections import under_way
from devmentor_ha.rules import NOBODY, Need, Rule

if TYPE_CHECKING:
    from devmentor.pgagent.agent import Agent

log = logging.getLogger(__name__)

START_EVERY_S = 2.0
START_LIMIT_S = 30.0
UNDECIDED_S = 8.0


class Starter:
    """`rejoin` is for a server that must be brought in line before it is started: with the rule and the reason."""

    def __init__(self, agent: "Agent", rejoin: Callable[[Rule, str], None]) -> None:
        self._agent = agent
        self._rejoin = rejoin
        self._tried_at = 0.0
        self._undecided_since = 0.0

    def decided(self) -> None:
        """The server is not stopped (any more)."""
        self._undecided_since = 0.0

    async def bring_back(self) -> None:
        agent = self._agent
        rule = agent.state.committed
        agent.leading.stop()
        if time.monotonic() - self._tried_at < START_EVERY_S:
            return
        self._tried_at = time.monotonic()
        if rule is not None and rule.leader != agent.settings.node:
            why = await agent.follower.unfit(agent.leader_view(rule))
            if why and agent.state.promise.epoch <= rule.epoch:
                self._rejoin(rule, why)
                return
            if why and not self._was_promoted():
                return
        elif rule is not None and self._awaits_another(rule):
            return
        elif rule is not None and not agent.postgres.is_standby_data and self._undecided(rule):
            # Started so that it acknowledges nothing; then it can be reaffirmed, or learns that it was superseded.
            agent.postgres.edit_auto_conf({"synchronous_standby_names": Need(1, frozenset({NOBODY})).setting})
            log.warning("starts fenced: others promised a higher epoch, and nobody leads")
        if agent.postgres.has_data:
            await self.start()

    def _awaits_another(self, rule: Rule) -> bool:
        """Whether the one that it was demoted for may still come to lead: started now, it would have to be rewound.

        No longer than its reaffirmation would have to wait, or a candidate commits. A leader that was not demoted is
        the guard's, which refuses it meanwhile.
        """
        agent = self._agent
        if not self._acknowledges_nothing():
            return False
        demoted_at = agent.demoted_at
        just_demoted = demoted_at is not None and time.monotonic() - demoted_at < agent.settings.reaffirm_after_s
        return just_demoted or under_way(agent.statuses(), rule)

    def _was_promoted(self) -> bool:
        """Whether it stopped between its promotion and the commit: the next election needs what it has."""
        agent = self._agent
        promoted = not agent.state.remaking and agent.postgres.has_data and not agent.postgres.is_standby_data
        return promoted and self._acknowledges_nothing()

    def _acknowledges_nothing(self) -> bool:
        """As its settings are, once it is started."""
        return NOBODY in self._agent.postgres.auto_conf().get("synchronous_standby_names", "")

    async def start(self) -> None:
        """A start that hangs is ended: systemd itself waits for its limit of minutes, and takes no other start."""
        agent, postgres = self._agent, self._agent.postgres
        async with agent.lock:
            if agent.busy:
                return
            agent.busy = "start"
            try:
                unit = await postgres.unit()
                if postgres.process() is not None:
                    return  # meanwhile
                if unit.starts and unit.age_s > START_LIMIT_S:
                    log.error("ends a start that hangs", extra={"unit": agent.settings.pg_unit, "age_s": unit.age_s})
                    await postgres.cancel_start()
                await postgres.start()
            finally:
                agent.busy = ""

    def _undecided(self, rule: Rule) -> bool:
        """Whether this node led, a quorum of its followers answers, one promised more, and still nobody leads."""
        statuses = self._agent.statuses()
        members = [statuses[name] for name in rule.members if name in statuses]
        undecided = len([s for s in members if s["node"] in rule.followers]) >= rule.r and any(
            status["promise"]["epoch"] > rule.epoch for status in members
        )
        if not undecided:
            self._undecided_since = 0.0
        elif not self._undecided_since:
            self._undecided_since = time.monotonic()
        return undecided and time.monotonic() - self._undecided_since > UNDECIDED_S
