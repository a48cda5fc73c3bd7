"""What the tests of the tiers share: a host's plan, a check's outcome, an HTTP server that asks for a certificate."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

from module_utils.devmentor.checks_base import Plan, Recorder


def plan(tls: dict[str, str] | None = None, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "host": "h1",
        "address": "127.0.0.1",
        "groups": (),
        "peers": {},
        "ports": {},
        "tls": tls or {},
        "secrets": {"api_key": "sk-very-secret"},
        "run": "abc123",
        "patience": 0.0,
    }
    return Plan(**{**values, **changes})


def outcome(function: Callable[[], str], **changes: Any) -> tuple[str, str]:
    recorder = Recorder(plan(**changes), "test")
    passed = recorder.check("it", function)
    (row,) = recorder.rows
    assert passed == (row.result == "pass")
    return row.result, row.evidence


def raising(error: Exception) -> Callable[[], str]:
    def function() -> str:
        raise error

    return function


def server_context(tls: dict[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls["cert"], tls["key"])
    context.load_verify_locations(tls["ca"])
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Service(http.server.BaseHTTPRequestHandler):
    """Answers by a table {(method, path): (status, body)}; remembers what it was asked."""

    table: dict[tuple[str, str], tuple[int, Any]] = {}
    asked: list[tuple[str, str, dict[str, str], Any]] = []

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.asked.append((self.command, self.path, dict(self.headers), body))
        status, content = self.table.get((self.command, self.path), (404, {"error": {"message": "no such thing"}}))
        payload = json.dumps(content(body) if callable(content) else content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *arguments: Any) -> None:
        """The test's output stays readable."""


@contextlib.contextmanager
def service(tls: dict[str, str], table: dict[tuple[str, str], tuple[int, Any]]) -> Iterator[tuple[int, type[Service]]]:
    handler = type("Handler", (Service,), {"table": table, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = server_context(tls).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], handler
    finally:
        server.shutdown()
        server.server_close()
