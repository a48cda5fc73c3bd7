"""The cache, against a server that speaks as much of its protocol as the check does."""

from __future__ import annotations

import threading

import pytest
from verify_doubles import plan, server_context

from module_utils.devmentor.checks_base import Recorder
from module_utils.devmentor.checks_cache import check_cache


class Valkey(threading.Thread):
    """As much of the protocol as the check speaks, over TLS; `forget` loses what was set."""

    def __init__(self, tls: dict[str, str], forget: bool = False) -> None:
        super().__init__(daemon=True)
        import socket

        self.listener = server_context(tls).wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        self.port = self.listener.getsockname()[1]
        self.forget = forget
        self.commands: list[list[str]] = []

    def run(self) -> None:
        connection, _ = self.listener.accept()
        stored: dict[str, str] = {}
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline():
                words = []
                for _ in range(int(line[1:])):
                    words.append(stream.read(int(stream.readline()[1:]) + 2)[:-2].decode())
                self.commands.append(words)
                reply = b"-ERR unknown command\r\n"
                if words[0] == "AUTH":
                    reply = b"+OK\r\n" if words[2] == "pw" else b"-WRONGPASS invalid username-password pair\r\n"
                elif words[0] == "SET":
                    stored |= {} if self.forget else {words[1]: words[2]}
                    reply = b"+OK\r\n"
                elif words[0] == "GET":
                    value = stored.get(words[1])
                    reply = b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value.encode())
                elif words[0] == "DEL":
                    reply = b":%d\r\n" % (stored.pop(words[1], None) is not None)
                stream.write(reply)
                stream.flush()


@pytest.mark.parametrize(
    ("password", "forget", "result", "evidence"),
    [
        ("pw", False, "pass", "SET, GET, DEL over TLSv1.3"),
        ("other", False, "fail", "WRONGPASS"),
        ("pw", True, "fail", "GET answered None"),
    ],
)
def test_the_cache_keeps_what_it_is_given(
    tls: dict[str, str], password: str, forget: bool, result: str, evidence: str
) -> None:
    valkey = Valkey(tls, forget)
    valkey.start()
    secrets = {"cache_password": password}
    recorder = Recorder(plan(tls, ports={"cache": valkey.port}, secrets=secrets), "cache")
    check_cache(recorder.plan, recorder)
    (row,) = recorder.rows
    assert row.result == result
    assert row.evidence.startswith(evidence)
    assert any("EX" in command for command in valkey.commands) == (password == "pw")
