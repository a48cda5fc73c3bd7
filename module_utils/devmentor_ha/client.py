"""Client of the agents' API: standard library only, mutual TLS, and one deadline over the whole of each call."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class AgentError(Exception):
    """An agent that did not answer, or refused. `status`: its HTTP status, 0 where there was no answer."""

    def __init__(self, node: str, message: str, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{node}: {message}")
        self.node, self.status, self.body = node, status, dict(body or {})


class _Connection(http.client.HTTPSConnection):
    """Every socket operation gets what is left of the deadline, and reading ends with it."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext, deadline: float) -> None:
        self._deadline = deadline
        super().__init__(address, port, context=context, timeout=self.left())

    def left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is up")
        return left

    def whole(self, response: http.client.HTTPResponse) -> bytes:
        parts: list[bytes] = []
        while True:
            if self.sock is not None:
                self.sock.settimeout(self.left())
            part = response.read1(65536)
            if not part:
                return b"".join(parts)
            parts.append(part)


class Client:
    """Agents by name. `nodes`: name -> address, which the certificate must hold."""

    def __init__(
        self, nodes: Mapping[str, str], port: int, token: str, *, ca: str, cert: str, key: str
    ) -> None:
        self._nodes, self._port, self._token = dict(nodes), port, token
        self._context = ssl.create_default_context(cafile=ca)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_cert_chain(cert, key)

    def get(self, node: str, call: str, limit_s: float) -> dict[str, Any]:
        """GET /v1/CALL. Raises AgentError."""
        return self._call(node, "GET", call, None, limit_s)

    def post(self, node: str, call: str, body: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """POST /v1/CALL. Raises AgentError."""
        return self._call(node, "POST", call, body, limit_s)

    def fan_out(
        self, nodes: list[str], call: str, body: Mapping[str, Any] | None, limit_s: float
    ) -> tuple[dict[str, dict[str, Any]], dict[str, AgentError]]:
        """The same call to several nodes at once: answers, and failures. A node is in exactly one of them."""
        answers: dict[str, dict[str, Any]] = {}
        failures: dict[str, AgentError] = {}

        def one(node: str) -> None:
            try:
                answers[node] = self._call(node, "GET" if body is None else "POST", call, body, limit_s)
            except AgentError as error:
                failures[node] = error

        if nodes:
            with ThreadPoolExecutor(len(nodes)) as pool:
                list(pool.map(one, nodes))
        return answers, failures

    def _call(
        self, node: str, method: str, call: str, body: Mapping[str, Any] | None, limit_s: float
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", "Connection": "close"}
        data = None if body is None else json.dumps(body).encode()
        try:
            connection = _Connection(self._nodes[node], self._port, self._context, time.monotonic() + limit_s)
            try:
                connection.request(method, f"/v1/{call}", data, headers)
                response = connection.getresponse()
                answer = json.loads(connection.whole(response))
            finally:
                connection.close()
        except KeyError:
            raise AgentError(node, "is no node with an agent") from None
        except TimeoutError:
            raise AgentError(node, f"no answer to {call} in {limit_s:g} s: host, network or agent is down") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AgentError(node, f"{call}: {type(error).__name__}: {error}") from error
        if not isinstance(answer, dict):
            raise AgentError(node, f"{call}: the answer is no object", response.status)
        if response.status >= 300:
            details = answer.get("error")
            said = details.get("message") if isinstance(details, dict) else None
            raise AgentError(node, f"{said or f'status {response.status}'}", response.status, answer)
        return answer


def read_cluster(path: str) -> dict[str, dict[str, Any]]:
    """cluster.json: duty -> name -> {address, priority}."""
    with open(path) as handle:
        content = json.load(handle)
    return {duty: dict(content.get(duty, {})) for duty in ("postgres", "pgbouncer")}


def read_env(path: Any) -> dict[str, str]:
    """An environment file as systemd reads it: KEY=VALUE lines, the value perhaps in quotes."""
    values = {}
    with open(path) as handle:
        for line in handle:
            name, separator, value = line.strip().partition("=")
            if not separator or name.startswith("#"):
                continue
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
            elif len(value) >= 2 and value[0] == value[-1] == "'":
                value = value[1:-1]
            values[name] = value
    return values


