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
import urllib.parse
from typing import Any

from .checks_base import Failed, Plan, Unanswered

# Of a body, for evidence: more than a recorder keeps, so that it masks a secret before it cuts the text.
EXCERPT = 4096


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: c.Mapping[str, str]
    body: bytes

    def excerpt(self) -> str:
        """The start of the body, for evidence."""
        return self.body[:EXCERPT].decode(errors="replace")

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"HTTP {self.status} with a body that is not JSON: {self.body[:80]!r}") from None


def client_context(tls: c.Mapping[str, str]) -> ssl.SSLContext:
    """`ca` checks the other side (without it, what the host trusts); `cert` and `key` are our side of mutual TLS."""
    context = ssl.create_default_context(cafile=tls.get("ca") or None)
    if tls.get("cert"):
        context.load_cert_chain(tls["cert"], tls.get("key") or None)
    return context


def tls_context(plan: Plan) -> ssl.SSLContext:
    """The platform CA checks the other side; the host's own key pair is our side of mutual TLS."""
    return client_context(plan.tls)


def fetch(
    tls: c.Mapping[str, str],
    method: str,
    url: str,
    payload: bytes | None = None,
    headers: c.Mapping[str, str] | None = None,
    timeout: float = 20.0,
    limit: int | None = None,
) -> Answer:
    """One HTTP request, whatever its status; of the body at most `limit` bytes. Follows no redirect, uses no proxy."""
    parts = urllib.parse.urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = client_context(tls)
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with contextlib.closing(connection):
        connection.request(method, target, payload, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read(limit))


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
    payload = None if body is None else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    answer = fetch(plan.tls, method, url, payload, {**kind, **(headers or {})}, timeout)
    if answer.status not in expect:
        raise Failed(f"HTTP {answer.status}: {answer.excerpt()}")
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
