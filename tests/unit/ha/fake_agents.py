"""A client that reaches no network: fake agents with scripted statuses and answers, which keep what they were sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.devmentor_ha.client import AgentError

Answer = Mapping[str, Any] | AgentError | Callable[[dict[str, Any]], Mapping[str, Any]]


def refusal(node: str, message: str) -> AgentError:
    return AgentError(node, message, 409, {"error": {"code": "refused", "message": message}})


def silence(node: str) -> AgentError:
    return AgentError(node, "no answer to status in 2 s: host, network or agent is down")


class FakeClient:
    """In place of `client.Client`. Answers by (node, call) or by call; a node without a status is silent."""

    def __init__(self) -> None:
        self.statuses: dict[str, dict[str, Any]] = {}
        self.answers: dict[tuple[str, str] | str, Answer] = {}
        self.sent: list[tuple[str, str, dict[str, Any]]] = []

    def __call__(self, addresses: Mapping[str, str], port: int, token: str, **files: str) -> FakeClient:
        """What the modules take for the constructor."""
        self.addresses, self.port, self.token, self.files = dict(addresses), port, token, files
        return self

    def get(self, node: str, call: str, limit_s: float) -> dict[str, Any]:
        assert (call, limit_s > 0) == ("status", True)
        if node not in self.statuses:
            raise silence(node)
        return self.statuses[node]

    def post(self, node: str, call: str, body: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        assert limit_s > 0
        self.sent.append((node, call, dict(body)))
        answer = self.answers.get((node, call), self.answers.get(call, silence(node)))
        if isinstance(answer, AgentError):
            raise answer
        return dict(answer(dict(body)) if callable(answer) else answer)

    def fan_out(
        self, nodes: list[str], call: str, body: Mapping[str, Any] | None, limit_s: float
    ) -> tuple[dict[str, dict[str, Any]], dict[str, AgentError]]:
        answers: dict[str, dict[str, Any]] = {}
        failures: dict[str, AgentError] = {}
        for node in nodes:
            try:
                if body is not None:
                    answers[node] = self.post(node, call, body, limit_s)
                elif node in self.statuses:
                    answers[node] = self.statuses[node]
                else:
                    failures[node] = silence(node)
            except AgentError as error:
                failures[node] = error
        return answers, failures

    def calls(self, call: str) -> list[tuple[str, dict[str, Any]]]:
        """(node, body) of every call of this name."""
        return [(node, body) for node, name, body in self.sent if name == call]


def status(node: str, rule: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    """A node in order: it leads, or follows and streams."""
    leads = bool(rule) and rule["leader"] == node
    return {
        "node": node,
        "rule": rule,
        "committed": rule,
        "leading": rule if leads else None,
        "paused": {"until": 0, "reason": ""},
        "acting": "",
        "postgres": {"state": "running", "in_recovery": not leads, "streaming": not leads, "started_at": 1000.0},
        **more,
    }


def write_host(folder: Path, node: str, nodes: list[str], poolers: list[str]) -> Path:
    """pgagent.env, cluster.json and the token as role pgagent writes them; gives the first."""
    cluster = {
        "postgres": {name: {"address": f"192.0.2.{i}", "priority": 0} for i, name in enumerate(nodes, 1)},
        "pgbouncer": {name: {"address": f"192.0.2.{i}"} for i, name in enumerate(poolers, 101)},
    }
    (folder / "cluster.json").write_text(json.dumps(cluster))
    (folder / "token").write_text("a token\n")
    settings = {
        "NODE": node,
        "PORT": 8310,
        "CLUSTER_FILE": folder / "cluster.json",
        "TOKEN_FILE": folder / "token",
        "TLS_CA": "/etc/devmentor/tls/ca.crt",
        "TLS_CERT": "/etc/devmentor/tls/host.crt",
        "TLS_KEY": "/etc/devmentor/tls/host.key",
    }
    (folder / "pgagent.env").write_text("".join(f"PGAGENT_{name}={value}\n" for name, value in settings.items()))
    return folder / "pgagent.env"
