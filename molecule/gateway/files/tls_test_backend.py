#!/usr/bin/python3
"""A stand-in for the API tiers behind the gateway, for the gateway's tests alone.

Real TLS that demands a client certificate of the platform's CA, real HTTP/1.1, answers that say who was asked and what
arrived. It misbehaves as told by files in its directory:

    unready   /ready answers 503
    fail      every other request answers 500
    drop      POST closes the connection without a byte
"""

import json
import socket
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TLS = Path("/etc/devmentor/tls")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tier = ""
    orders = Path("/run/tls-test-backend")

    def told(self, what):
        return (self.orders / what).exists()

    def answer(self, status, **body):
        content = json.dumps({"tier": self.tier, "host": socket.gethostname(), **body}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

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

    def do_GET(self):
        if self.path == "/ready":
            self.answer(503 if self.told("unready") else 200)
        elif self.told("fail"):
            self.answer(500)
        elif self.path.startswith("/v1/stream/"):
            events, pause = self.path.removeprefix("/v1/stream/").split("x")
            self.stream(int(events), float(pause))
        else:
            self.answer(200, path=self.path, headers={name.lower(): value for name, value in self.headers.items()})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.told("drop"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.do_GET()

    def log_message(self, *args):
        """The gateway's own log is what is read."""


def main():
    Handler.tier, port = sys.argv[1], int(sys.argv[2])
    Handler.orders.mkdir(exist_ok=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=TLS / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(TLS / "host.crt", TLS / "host.key")
    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)
    server.daemon_threads = True
    # The handshake is the connection's own thread's business, not the listener's.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


main()
