"""One check asked as the module asks it, in a process of its own; an HTTP server that answers by a function."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from module_utils.devmentor.gate_parse import parse_checks
from module_utils.devmentor.gate_probe import Answer, run_jobs
from module_utils.devmentor.gate_run import job_maker, make_plan


def asked(
    check: dict[str, Any],
    memory: Mapping[str, Any] | None = None,
    limit: float = 10.0,
    secrets: Mapping[str, str] | None = None,
    tls: Mapping[str, str] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> Answer:
    """The answer of one probe."""
    [parsed] = parse_checks([{"name": "it", **check}])
    make = job_maker(make_plan(plan or {}, secrets or {}, tls or {}))
    return run_jobs({"it": make(parsed, memory or {}, limit)})["it"]


def told(check: dict[str, Any], **more: Any) -> tuple[str, str]:
    answer = asked(check, **more)
    return answer.result, answer.evidence


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


Responder = Callable[[http.server.BaseHTTPRequestHandler, bytes], tuple[int, bytes]]


@contextlib.contextmanager
def serving(respond: Responder, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The URL of a real HTTP server on a loopback address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, payload = respond(self, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *arguments: Any) -> None:
            """The test's output stays readable."""

    server = http.server.ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
