"""Client of the agents' API: standard library only, mutual TLS, and one deadline over the whole of each call."""

from __future__ import annotations

import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast


class AgentError(Exception):
    """An agent that did not answer, or refused. `status`: its HTTP status, 0 where there was no answer."""

    def __init__(self, node: str, message: str, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{node}: {message}")
        self.node, self.status, self.body = node, status, dict(body or {})


class _Received(io.RawIOBase):
    """What comes in over a connection: each read gets what is left of the deadline, however little it brings."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.bound()
        return self._connection.sock.recv_into(buffer)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """As http.client asks a socket for it."""
        return io.BufferedReader(self)


class _Connection(http.client.HTTPSConnection):
    """Connect, handshake, send and every read share one deadline."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext, deadline: float) -> None:
        super().__init__(address, port, context=context)
        self._deadline, self._tls = deadline, context

    def left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is up")
        return left

    def bound(self) -> None:
        self.sock.settimeout(self.left())

    def connect(self) -> None:
        self.sock = socket.create_connection((self.host, self.port), self.left())
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.bound()
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)
        self.bound()

    def answer(self) -> tuple[int, bytes]:
        response = http.client.HTTPResponse(cast(socket.socket, _Received(self)))
        response.begin()
        return response.status, response.read()


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
        if node not in self._nodes:
            raise AgentError(node, f"has no agent; there are {', '.join(sorted(self._nodes)) or 'none'}")
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", "Connection": "close"}
        data = None if body is None else json.dumps(body).encode()
        connection = _Connection(self._nodes[node], self._port, self._context, time.monotonic() + limit_s)
        try:
            connection.request(method, f"/v1/{call}", data, headers)
            status, text = connection.answer()
            answer = json.loads(text)
        except TimeoutError:
            raise AgentError(node, f"no answer to {call} in {limit_s:g} s: host, network or agent is down") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AgentError(node, f"{call}: {type(error).__name__}: {error}{_remedy(error)}") from error
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise AgentError(node, f"{call}: the answer is no object", status)
        if status >= 300:
            details = answer.get("error")
            said = details.get("message") if isinstance(details, dict) else None
            raise AgentError(node, f"{said or f'status {status}'}", status, answer)
        return answer


def _remedy(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return ". Its agent does not run: systemctl start pgagent there"
    if isinstance(error, ssl.SSLError):
        return ". Certificates of both hosts: site.yml --tags pki"
    return ""


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
