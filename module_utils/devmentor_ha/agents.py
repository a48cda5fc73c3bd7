"""The agents as the modules see them: from the settings of the host that a module runs on, so that no playbook needs
addresses, certificates or the token. Wherever a module runs, it asks all agents."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .client import AgentError, Client, read_cluster, read_env
from .rules import Rule, RuleError

ENV_FILE = "/etc/devmentor/pgagent/pgagent.env"
STATUS_LIMIT_S = 2.0

ENV_ARGUMENT = {"env_file": {"type": "path", "default": ENV_FILE}}
"""The parameter that all modules share."""


class HaError(Exception):
    """What keeps a module from its work. `facts`: for fail_json, besides the message."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


@dataclass(frozen=True)
class View:
    """What the agents of the PostgreSQL nodes said, and why the others did not."""

    statuses: Mapping[str, dict[str, Any]]
    failures: Mapping[str, AgentError]

    @property
    def silent(self) -> str:
        """The agents that gave no answer, each with the reason."""
        return "; ".join(str(self.failures[name]) for name in sorted(self.failures))

    @property
    def leader(self) -> str:
        """The node that says it leads a committed rule, by the highest one; empty where nobody does."""
        leading = [(_rule(status, "leading"), name) for name, status in self.statuses.items()]
        found = [(rule.key, name) for rule, name in leading if rule is not None]
        return max(found)[1] if found else ""

    @property
    def rule(self) -> Rule | None:
        """The newest rule that any node tells of, committed or not."""
        rules = [_rule(status, name) for status in self.statuses.values() for name in ("rule", "committed")]
        return max((rule for rule in rules if rule is not None), key=lambda rule: rule.key, default=None)

    @property
    def committed(self) -> Rule | None:
        """The highest rule that any node knows to be committed."""
        rules = [_rule(status, "committed") for status in self.statuses.values()]
        return max((rule for rule in rules if rule is not None), key=lambda rule: rule.key, default=None)

    def controller(self, prefer: str | None = None) -> str:
        """The node whose agent is to act: never the leader's, which may stop in the middle; `prefer` before others,
        nodes whose server follows before those whose server is down. Raises HaError."""
        leaders = {self.leader, self.rule.leader if self.rule else ""}
        nodes = [name for name in sorted(self.statuses) if name not in leaders]
        if not nodes:
            raise HaError(
                f"No agent of a follower answers ({self.silent or 'there is none'}). Start pgagent.service on a "
                "follower and run again.",
                silent=sorted(self.failures),
            )
        return min(nodes, key=lambda name: (name != prefer, not follows(self.statuses[name]), name))


class Agents:
    """All agents of the cluster."""

    def __init__(self, client: Client, node: str, nodes: Sequence[str], poolers: Sequence[str]) -> None:
        self.client, self.node, self.nodes, self.poolers = client, node, list(nodes), list(poolers)

    @classmethod
    def of_host(cls, env_file: str) -> Agents:
        """As the agent of this host reaches them. Raises HaError where it has none."""
        try:
            settings = {name.removeprefix("PGAGENT_"): value for name, value in read_env(env_file).items()}
            cluster = read_cluster(settings["CLUSTER_FILE"])
            with open(settings["TOKEN_FILE"]) as handle:
                token = handle.read().strip()
            addresses = {name: entry["address"] for duty in cluster.values() for name, entry in duty.items()}
            client = Client(
                addresses,
                int(settings["PORT"]),
                token,
                ca=settings["TLS_CA"],
                cert=settings["TLS_CERT"],
                key=settings["TLS_KEY"],
            )
            return cls(client, settings["NODE"], sorted(cluster["postgres"]), sorted(cluster["pgbouncer"]))
        except (OSError, KeyError, ValueError) as error:
            said = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise HaError(
                f"{os.uname().nodename}: {env_file}: {said}. The module runs on a host with a failover agent; "
                "site.yml --tags pgagent installs it."
            ) from error

    def look(self, limit_s: float = STATUS_LIMIT_S) -> View:
        """Ask every PostgreSQL node."""
        return View(*self.client.fan_out(self.nodes, "status", None, limit_s))

    def known(self, names: Collection[str], of: Sequence[str] | None = None) -> None:
        """Raises HaError for a name that is no node (of `of`, by default the PostgreSQL nodes)."""
        among = self.nodes if of is None else of
        strange = sorted(set(names) - set(among))
        if strange:
            raise HaError(f"{', '.join(strange)}: no such node; there are {', '.join(among) or 'none'}.")


def follows(status: Mapping[str, Any]) -> bool:
    """Whether the node's server runs and is in recovery."""
    server = status.get("postgres") or {}
    return server.get("state") == "running" and server.get("in_recovery") is True


def as_yaml(rule: Mapping[str, Any] | None) -> str:
    """A rule (or any flat mapping) as YAML, for diffs. JSON's scalars and lists are YAML's."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in (rule or {}).items())


def rule_diff(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, str]:
    """For diff mode."""
    return {"before": as_yaml(before), "after": as_yaml(after)}


def conclude(node: str, answer: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a failover or switchover that `node` ran, for exit_json. `planned`: what is known of the next rule
    in check mode. Raises HaError where nobody leads by it."""
    outcome, reasons = str(answer.get("outcome")), [str(reason) for reason in answer.get("reasons", [])]
    before = answer.get("before")
    after = answer.get("rule") if outcome == "done" else {"epoch": answer.get("epoch"), **planned}
    facts = {
        "outcome": outcome,
        "reasons": reasons,
        "epoch": answer.get("epoch", 0),
        "rule": answer.get("rule"),
        "before": before,
        "steps": answer.get("steps", []),
        "stall_s": answer.get("stall_s"),
        "controller": node,
    }
    if outcome in ("done", "planned"):
        return {"changed": True, "diff": rule_diff(before, after), **facts}
    remedies = {
        "refused": "Nothing was changed; run again once that is mended",
        "aborted": "Nobody was promoted; the leader is reaffirmed within seconds if it lives, otherwise run again",
    }
    remedy = remedies.get(outcome, "What became of it shows in GET /v1/status of the agents; look before a next try")
    raise HaError(f"{node}: {outcome}: {'; '.join(reasons) or 'no reason given'}. {remedy}.", **facts)


def ask(agents: Agents, node: str, call: str, body: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
    """POST to one agent. Raises HaError; a call without an answer may have been carried out."""
    try:
        return agents.client.post(node, call, body, limit_s)
    except AgentError as error:
        if error.status:
            raise HaError(
                f"{error}. See journalctl -u pgagent on {node}.", outcome="refused", reasons=[str(error)]
            ) from error
        raise HaError(
            f"{error}. Whether {node} did it is not known; look at journalctl -u pgagent there before a next try.",
            outcome="unknown",
            reasons=[str(error)],
        ) from error


def _rule(status: Mapping[str, Any], name: str) -> Rule | None:
    try:
        return Rule.from_dict(status[name]) if status.get(name) else None
    except RuleError:
        return None
