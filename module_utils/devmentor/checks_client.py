"""How a check asks: HTTP over mutual TLS, and commands on the host."""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import http.client
import json
import os
import ssl
import subprocess
from typing import Any

from .checks_base import Failed, Plan, Unanswered


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: c.Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"HTTP {self.status} with a body that is not JSON: {self.body[:80]!r}") from None


def tls_context(plan: Plan) -> ssl.SSLContext:
    """The platform CA checks the other side; the host's own key pair is our side of mutual TLS."""
    context = ssl.create_default_context(cafile=plan.tls["ca"])
    context.load_cert_chain(plan.tls["cert"], plan.tls["key"])
    return context


def ask(
    plan: Plan,
    method: str,
    url: str,
    body: Any = None,
    headers: c.Mapping[str, str] | None = None,
    timeout: float = 20.0,
    expect: tuple[int, ...] = (200,),
) -> Answer:
    """One HTTP request; a status that is not expected raises Failed with the start of the body."""
    scheme, _, rest = url.partition("://")
    netloc, _, path = rest.partition("/")
    host, _, port = netloc.rpartition(":")
    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(host, int(port), timeout=timeout, context=tls_context(plan))
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    with contextlib.closing(connection):
        payload = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, f"/{path}", payload, {**kind, **(headers or {})})
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    if answer.status not in expect:
        raise Failed(f"HTTP {answer.status}: {answer.body[:160].decode(errors='replace')}")
    return answer


def bearer(plan: Plan) -> dict[str, str]:
    return {"Authorization": f"Bearer {plan.secrets['api_key']}"}


def run_command(
    command: list[str], stdin: str = "", env: c.Mapping[str, str] | None = None, timeout: float = 30
) -> str:
    """Standard output of a command. Raises Unanswered with what it complained about."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip()
        raise Unanswered(f"{command[0]} exited {done.returncode}: {complaint[-200:]}")
    if "canceling wait for synchronous replication" in done.stderr:
        raise Failed("the row was not acknowledged by a quorum of replicas within the time limit")
    return done.stdout
