"""Failover, reaffirmation and switchover: whoever runs this is the controller, and may be killed at any line."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devmentor.pgagent import metrics
from devmentor.pgagent.peers import CallFailed
from devmentor_ha.election import DEMOTED, Abort, Answer, Choice, choose, next_epoch
from devmentor_ha.rules import Rule, RuleError, superseded, uncovered

if TYPE_CHECKING:
    from devmentor.pgagent.agent import Agent

log = logging.getLogger(__name__)

STATUS_LIMIT_S = 0.5
FENCE_LIMIT_S = 3.0
COMMIT_LIMIT_S = 15.0
DRAIN_LIMIT_S = 30.0
LAG_LIMIT_BYTES = 1024 * 1024
TRANSACTION_LIMIT_S = 5.0


@dataclass
class Outcome:
    """What became of it. `result`: done, aborted, refused, unknown, or planned (check)."""

    result: str
    reasons: list[str] = field(default_factory=list)
    epoch: int = 0
    rule: Rule | None = None
    before: Rule | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    stall_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "outcome": self.result,
            "reasons": self.reasons,
            "epoch": self.epoch,
            "rule": self.rule.as_dict() if self.rule else None,
            "before": self.before.as_dict() if self.before else None,
            "steps": self.steps,
            "stall_s": self.stall_s,
        }


class Controller:
    """One operation at a time in this agent; others may act at the same time, promises decide."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._lock = asyncio.Lock()

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    async def failover(
        self,
        reason: str,
        *,
        check: bool = False,
        force: bool = False,
        target: str | None = None,
        force_data_loss: int | None = None,
        reaffirm: bool = False,
        statuses: dict[str, Any] | None = None,
    ) -> Outcome:
        """Replace the leader (or, with `reaffirm`, confirm this node as such). Never raises for what can go wrong.

        `statuses`: of the nodes that answered a moment ago, so that a dead one is not asked again.
        """
        if self._lock.locked():
            return Outcome("refused", [f"{self._agent.settings.node} is at it already: {self._agent.acting}"])
        async with self._lock:
            run = _Run(self._agent, "reaffirm" if reaffirm else "failover", reason)
            try:
                known = (statuses, {}) if statuses else await run.look()
                outcome = await self._failover(run, known, check, force, target, force_data_loss, reaffirm)
            except Abort as abort:
                outcome = Outcome("aborted" if run.fenced else "refused", abort.reasons)
            return run.end(outcome)

    async def _failover(
        self,
        run: "_Run",
        known: tuple[dict[str, Any], dict[str, CallFailed]],
        check: bool,
        force: bool,
        target: str | None,
        data_loss: int | None,
        reaffirm: bool,
    ) -> Outcome:
        statuses, away = known
        highest = run.highest(statuses)
        if not (force or reaffirm):
            healthy = _healthy_leader(highest, statuses)
            if healthy:
                raise Abort([f"{healthy}; a switchover moves it without a failed statement (force overrides this)"])
        epoch = run.epoch_for(statuses)
        if data_loss is not None and data_loss != epoch:
            raise Abort([f"force_data_loss names epoch {data_loss}, but the next one is {epoch}: name that"])
        try:
            rules = _known(statuses)
        except RuleError as error:
            raise Abort([str(error)]) from error
        asked = {name for rule in rules for name in rule.members}
        if data_loss is not None:
            asked |= set(statuses)
        elif not reaffirm:
            asked -= {rules[0].leader}  # the one to be replaced; a half-promoted one after it is asked
        if check:
            return _planned(highest, statuses, away, epoch, asked, target)
        hopeless = _cannot_be_covered(statuses, asked & set(statuses))
        if hopeless and data_loss is None:
            raise Abort(hopeless)
        answers = await run.fence(epoch, asked & set(statuses), statuses)
        if reaffirm:  # level with others it stays the leader; behind a half-promoted one it must not
            run.priorities[self._agent.settings.node] = max(run.priorities.values()) + 1
        choice = choose(answers, epoch, run.priorities, target, data_loss is not None)
        if data_loss is not None:
            log.critical("data loss accepted by the operator", extra={"epoch": epoch, "candidate": choice.candidate})
        return await run.hand_over(epoch, choice, answers)

    async def switchover(self, target: str | None, *, check: bool = False, deadline_s: float = 2.0) -> Outcome:
        """Move the leader while it lives. Before the promotion every failure goes back to where it was."""
        if self._lock.locked():
            return Outcome("refused", [f"{self._agent.settings.node} is at it already: {self._agent.acting}"])
        async with self._lock:
            run = _Run(self._agent, "switchover", f"to {target or 'the best follower'}")
            try:
                outcome = await self._switchover(run, target, check, deadline_s)
            except Abort as abort:
                outcome = Outcome("aborted" if run.fenced else "refused", abort.reasons)
            return run.end(outcome)

    async def _switchover(self, run: "_Run", target: str | None, check: bool, deadline_s: float) -> Outcome:
        agent = self._agent
        statuses, _ = await run.look()
        rule = run.highest(statuses)
        chosen = target or _best_follower(rule, statuses, run.priorities)
        reasons = _not_ready(rule, statuses, chosen)
        if reasons:
            raise Abort(reasons)
        epoch = run.epoch_for(statuses)
        if check:
            return Outcome("planned", [f"{chosen} would replace {rule.leader} at epoch {epoch}"], epoch, None, rule)
        checkpoints, failed = await agent.peers.many([rule.leader, chosen], "checkpoint", {}, limit_s=300)
        if failed:
            raise Abort([str(failure) for failure in failed.values()])
        run.step("checkpoint", nodes=sorted(checkpoints))
        poolers = list(agent.settings.cluster["pgbouncer"])
        began = time.monotonic()
        paused, failures = await agent.peers.many(
            poolers, "pool", {"action": "pause", "deadline_s": deadline_s}, limit_s=deadline_s + 2
        )
        if failures:
            await agent.peers.many(poolers, "pool", {"action": "resume", "deadline_s": 2}, limit_s=4)
            raise Abort(["the poolers could not be paused: " + "; ".join(map(str, failures.values()))])
        run.step("paused", poolers=sorted(paused))
        try:
            demoted = await agent.peers.call(
                rule.leader, "demote", {"epoch": epoch, "controller": run.controller}, limit_s=DRAIN_LIMIT_S
            )
            run.fenced = True
            run.step("demoted", node=rule.leader, lsn=demoted["lsn"])
            answers = await run.fence(epoch, rule.followers & set(statuses), set(statuses) - {rule.leader})
            answers.append(_answer(rule.leader, demoted))
            try:
                choice = choose(answers, epoch, run.priorities, chosen)
            except Abort as abort:
                run.step("another", reasons=abort.reasons)
                choice = choose(answers, epoch, run.priorities)  # whoever has everything: the old leader is stopped
            outcome = await run.hand_over(epoch, choice, answers)
        except CallFailed as failure:
            # Only a node that says so was not demoted. Without an answer it may be, and comes back by a reaffirmation.
            run.fenced = run.fenced or not 400 <= failure.status < 500
            raise Abort([str(failure)]) from failure
        finally:
            await agent.peers.many(poolers, "pool", {"action": "resume", "deadline_s": 2}, limit_s=4)
        outcome.stall_s = round(time.monotonic() - began, 3)
        return outcome


class _Run:
    """One operation: its controller's name, its log, and the calls that operations have in common."""

    def __init__(self, agent: "Agent", what: str, reason: str) -> None:
        self.agent = agent
        self.what = what
        self.controller = f"{agent.settings.node}/{uuid.uuid4().hex[:8]}"
        self.steps: list[dict[str, Any]] = []
        self.priorities = {name: node.priority for name, node in agent.settings.nodes.items()}
        self.fenced = False
        self._began = time.monotonic()
        self._epoch = 0
        agent.acting = what
        self.step("begin", reason=reason)

    def step(self, name: str, **details: Any) -> None:
        """One line in the log and one in the outcome."""
        entry = {"step": name, "at_s": round(time.monotonic() - self._began, 3), **details}
        self.steps.append(entry)
        self.agent.acting = f"{self.what} {self._epoch or ''}: {name}".replace("  ", " ")
        log.info(f"{self.what}: {name}", extra={"epoch": self._epoch, "controller": self.controller, **entry})

    def end(self, outcome: Outcome) -> Outcome:
        self.step(outcome.result, reasons=outcome.reasons)
        self.agent.acting = ""
        metrics.FAILOVERS.labels(outcome.result).inc()
        outcome.steps = self.steps
        outcome.epoch = outcome.epoch or self._epoch
        return outcome

    async def look(self) -> tuple[dict[str, Any], dict[str, CallFailed]]:
        """Statuses of all PostgreSQL nodes that answer."""
        return await self.agent.peers.many(self.agent.settings.nodes, "status", limit_s=STATUS_LIMIT_S)

    def highest(self, statuses: dict[str, Any]) -> Rule:
        """The newest rule that anybody tells of. Raises Abort where there is none."""
        rules = [
            Rule.from_dict(status[name])
            for status in statuses.values()
            for name in ("rule", "committed")
            if status.get(name)
        ]
        if self.agent.state.committed:
            rules.append(self.agent.state.committed)
        if not rules:
            raise Abort(["no agent that answers knows a rule: bootstrap the cluster (pg_ha_config), or wait for them"])
        return max(rules, key=lambda rule: rule.key)

    def epoch_for(self, statuses: dict[str, Any]) -> int:
        epochs = [status["promise"]["epoch"] for status in statuses.values()]
        epochs += [status["rule"]["epoch"] for status in statuses.values() if status.get("rule")]
        self._epoch = next_epoch([*epochs, self.agent.state.promise.epoch])
        return self._epoch

    async def fence(self, epoch: int, nodes: Iterable[str], alive: Iterable[str]) -> list[Answer]:
        """Fence nodes, and of those `alive` the followers of rules that only the answers tell of.

        Raises Abort where a promise stands in the way.
        """
        self.fenced = True
        answers: dict[str, Answer] = {}
        asked: set[str] = set()
        wanted = set(nodes)
        while wanted - asked:
            new = wanted - asked
            asked |= new
            body = {"epoch": epoch, "controller": self.controller}
            told, failures = await self.agent.peers.many(sorted(new), "fence", body, limit_s=FENCE_LIMIT_S)
            answers.update({name: _answer(name, entry) for name, entry in told.items()})
            self.step("fence", fenced=sorted(told), failed={name: str(f) for name, f in failures.items()})
            if any(f.body.get("error", {}).get("code") == "promised" for f in failures.values()):
                raise Abort([str(failure) for failure in failures.values()])
            wanted |= {
                follower for answer in answers.values() for rule in answer.rules for follower in rule.followers
            } & set(alive)
        return list(answers.values())

    async def hand_over(self, epoch: int, choice: Choice, answers: list[Answer]) -> Outcome:
        """Tell the candidate, and watch until its rule is committed. From here it needs no controller."""
        before = choice.replaced[-1]
        self.step("lead", candidate=choice.candidate, rule=choice.rule.name, waits_for=choice.need.setting)
        body = {
            "epoch": epoch,
            "controller": self.controller,
            "rule": choice.rule.as_dict(),
            "need": {"count": choice.need.count, "among": sorted(choice.need.among)},
            # A demoted leader comes back by itself, once the rule is committed; where it is the only follower, before.
            "fenced": [a.node for a in answers if a.mode != DEMOTED or a.node in choice.rule.followers],
        }
        try:
            await self.agent.peers.call(choice.candidate, "lead", body, limit_s=3.0)
        except CallFailed as failure:
            said = f"whether {choice.candidate} leads is not known: {failure}"
            return Outcome("unknown", [said], epoch, None, before)
        deadline = time.monotonic() + COMMIT_LIMIT_S
        while time.monotonic() < deadline:
            try:
                status = await self.agent.peers.call(choice.candidate, "status", limit_s=1.0)
                if status.get("leading") and status["leading"]["epoch"] == epoch:
                    return Outcome("done", [], epoch, Rule.from_dict(status["leading"]), before)
                if status["promise"]["epoch"] > epoch:
                    return Outcome("aborted", [f"epoch {status['promise']['epoch']} took over"], epoch, None, before)
            except CallFailed:
                pass
            await asyncio.sleep(0.1)
        reason = f"{choice.candidate} was promoted, but its rule is not acknowledged yet; it goes on trying"
        return Outcome("unknown", [reason], epoch, choice.rule, before)


def _answer(node: str, entry: dict[str, Any]) -> Answer:
    rules = tuple(Rule.from_dict(rule) for rule in entry["rules"])
    committed = Rule.from_dict(entry["committed"]) if entry.get("committed") else None
    return Answer(node, entry["mode"], rules, int(entry["lsn"]), int(entry["timeline"]), committed)


def _cannot_be_covered(statuses: dict[str, Any], nodes: Iterable[str]) -> list[str]:
    """Why fencing these nodes would lead to nothing, as far as the statuses tell: then nobody need be fenced."""
    running = [name for name in nodes if statuses[name]["postgres"]["state"] == "running"]
    try:
        return uncovered(_known(statuses), running)
    except RuleError as error:
        return [str(error)]


def _known(statuses: dict[str, Any]) -> list[Rule]:
    """The rules to supersede, as far as the statuses tell: the first is the last one known to be committed."""
    rules = [Rule.from_dict(rule) for status in statuses.values() for rule in status.get("rules") or []]
    known = [Rule.from_dict(status["committed"]) for status in statuses.values() if status.get("committed")]
    return superseded(rules, max(known, key=lambda rule: rule.key, default=None))


def _healthy_leader(rule: Rule, statuses: dict[str, Any]) -> str:
    status = statuses.get(rule.leader)
    if not status or not status.get("leading") or status.get("unwell") or status.get("writes_blocked"):
        return ""
    if status["postgres"]["state"] != "running" or (status["postgres"]["age_s"] or 99) > 2:
        return ""
    suspicions = [status.get("suspects") or {} for status in statuses.values()]
    if sum(suspicion.get("leader") == rule.leader for suspicion in suspicions) >= rule.r:
        return ""
    return f"the leader {rule.leader} is healthy: it answers and leads rule {rule.name}"


def _planned(
    rule: Rule, statuses: dict[str, Any], away: dict[str, CallFailed], epoch: int, asked: set[str], target: str | None
) -> Outcome:
    reach = sorted(asked & set(statuses))
    reasons = [
        f"rule {rule.name}: {rule.leader} leads {', '.join(sorted(rule.followers))}; a failover would be epoch {epoch}",
        f"it needs {rule.r} of the followers fenced, {len(set(reach) & rule.followers)} answer ({', '.join(reach)})",
        *(f"does not answer: {failure}" for failure in away.values()),
    ]
    enough = len(set(reach) & rule.followers) >= rule.r
    positions = {name: statuses[name]["postgres"].get("lsn") or 0 for name in reach}
    if enough and positions:
        best = target or max(reach, key=lambda name: positions[name])
        reasons.append(f"{best} would lead, as far as the positions of now tell")
    return Outcome("planned" if enough else "refused", reasons, epoch, None, rule)


def _best_follower(rule: Rule, statuses: dict[str, Any], priorities: dict[str, int]) -> str:
    running = [name for name in rule.followers if name in statuses and statuses[name]["postgres"].get("streaming")]
    if not running:
        raise Abort([f"no follower of rule {rule.name} streams"])
    return min(running, key=lambda name: (-priorities.get(name, 0), name))


def _not_ready(rule: Rule, statuses: dict[str, Any], target: str) -> list[str]:
    """Why a switchover to `target` would not be smooth; each with what to do."""
    reasons = []
    leader = statuses.get(rule.leader)
    if target == rule.leader:
        return [f"{target} leads already"]
    if target not in rule.followers:
        return [f"{target} is no follower of rule {rule.name} ({', '.join(sorted(rule.followers))})"]
    if not leader or not leader.get("leading"):
        return [f"the leader {rule.leader} does not answer as such; this is a case for failover, not switchover"]
    suspecting = sorted(name for name, status in statuses.items() if status.get("suspects"))
    if suspecting:
        reasons.append(f"{', '.join(suspecting)} suspect {rule.leader}; wait until that is over")
    above = sorted(name for name, status in statuses.items() if status["promise"]["epoch"] > rule.epoch)
    if above:
        reasons.append(f"{', '.join(above)} promised a higher epoch; wait for the reaffirmation")
    entry = next((row for row in leader["postgres"]["replication"] if row["name"] == target), None)
    if entry is None or entry["state"] != "streaming":
        reasons.append(f"{target} does not stream from {rule.leader}; see its log")
    elif (entry["lag_bytes"] or 0) > LAG_LIMIT_BYTES:
        reasons.append(f"{target} lags by {entry['lag_bytes']} bytes; wait until it is below {LAG_LIMIT_BYTES}")
    if leader["postgres"]["oldest_transaction_s"] > TRANSACTION_LIMIT_S:
        reasons.append(
            f"a transaction on {rule.leader} is {leader['postgres']['oldest_transaction_s']:.0f} s old; end it first"
        )
    if leader["postgres"]["archive"]["failed_last"]:
        reasons.append(f"archiving fails on {rule.leader}; mend it first, a stop would wait for it")
    reachable = [name for name in rule.followers if name in statuses]
    if len(reachable) < rule.r:
        reasons.append(f"only {', '.join(reachable)} of the followers answer, {rule.r} are needed")
    return reasons
