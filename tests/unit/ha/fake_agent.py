"""A fake agent: HTTPS with mutual TLS and a token as the real one, and answers that the test has put there."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.unit.services.authority import Authority

TOKEN = "a-token-of-the-tests"


class FakeAgent(ThreadingHTTPServer):
    """`answers`: call -> (HTTP status, body); `asked`: what came in, as (call, body), None for GET."""

    daemon_threads = True

    def __init__(self, authority: Authority, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((address, port), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("fake-agent"))
        context.load_verify_locations(authority.path)
        context.verify_mode = ssl.CERT_REQUIRED
        self.tls = context
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self.asked: list[tuple[str, dict[str, Any] | None]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        plain, peer = super().get_request()
        return self.tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is turned away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeAgent

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any] | None) -> None:
        call = self.path.removeprefix("/v1/")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send(401, {"error": {"code": "invalid_token", "message": "the agents' token is another one"}})
            return
        self.server.asked.append((call, body))
        unknown = {"error": {"code": "unknown_call", "message": "no such call"}}
        self._send(*self.server.answers.get(call, (404, unknown)))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def running(authority: Authority, address: str = "127.0.0.1", port: int = 0) -> Iterator[FakeAgent]:
    agent = FakeAgent(authority, address, port)
    thread = threading.Thread(target=agent.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield agent
    finally:
        agent.shutdown()
        agent.server_close()
        thread.join()


@contextlib.contextmanager
def stuck(authority: Authority, after: str) -> Iterator[int]:
    """A fake agent that gets stuck, and its port. `after`: "accept", "request" (never answers), "headers" (sends
    them byte by byte, for ever) or "body" (the same with the body)."""
    certificate, key = authority.issue(f"stuck-{after}")
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            plain, _ = listener.accept()
            with plain:
                if after == "accept":
                    ended.wait()
                    return
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate, key)
                with context.wrap_socket(plain, server_side=True) as stream:
                    stream.recv(65536)
                    if after == "body":
                        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                    elif after == "headers":
                        stream.sendall(b"HTTP/1.1 200 OK\r\nX-Endless: ")
                    while not ended.is_set():
                        time.sleep(0.02)
                        if after != "request":
                            stream.sendall(b"1")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        ended.set()
        listener.close()
        thread.join(2)


def certificate_files(authority: Authority) -> dict[str, str]:
    """ca, cert and key of a client."""
    certificate, key = authority.issue("client")
    return {"ca": str(authority.path), "cert": str(certificate), "key": str(key)}


def authority_in(folder: Path) -> Authority:
    return Authority(folder, "platform")
