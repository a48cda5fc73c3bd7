"""API instances behind the gateways: real TLS that demands a certificate, and HTTP/1.1; the test tells what they do."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: int  # bytes


@dataclass
class Instance:
    """One process of a tier at address:port. `orders` changes what it does, see Handler."""

    host: str
    address: str
    port: int
    tls: Path
    orders: set[str] = field(default_factory=set)
    seen: list[Seen] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.tls / "ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.tls / "host.pem")
        handler = type("Bound", (Handler,), {"instance": self})
        self.server = Server((self.address, self.port), handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    @property
    def paths(self) -> list[str]:
        return [each.path for each in self.seen]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Clients that go away are what many tests are about."""


class Handler(BaseHTTPRequestHandler):
    """Orders: unready, overloaded (429), fail (500), drop (closes without a byte), break (closes within the answer)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    instance: Instance

    def answer(self, status, **body):
        content = json.dumps({"host": self.instance.host, "port": self.instance.port, **body}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def close(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def stream(self, events, pause):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(events):
            event = f"data: {number}\n\n".encode()
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            self.wfile.flush()
            time.sleep(pause)
        self.wfile.write(b"0\r\n\r\n")

    def serve(self):
        orders = self.instance.orders
        if self.path == "/ready":
            self.answer(503 if "unready" in orders else 200)
            return
        size = int(self.headers.get("Content-Length") or 0)
        body = len(self.rfile.read(size)) if size else 0
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.instance.seen.append(Seen(self.command, self.path, headers, body))
        if "drop" in orders:
            self.close()
        elif "break" in orders:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"begun")
            self.close()
        elif "overloaded" in orders:
            self.answer(429)
        elif "fail" in orders:
            self.answer(500)
        elif self.path.startswith("/v1/stream/"):
            events, pause = self.path.removeprefix("/v1/stream/").split("x")
            self.stream(int(events), float(pause))
        else:
            self.answer(200, body=body, headers=headers)

    do_GET = do_POST = do_PUT = serve

    def log_message(self, *args):
        """The gateway's own log is what is read."""
