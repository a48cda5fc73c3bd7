"""verify's check of the cache, in the protocol that Redis and Valkey speak."""

from __future__ import annotations

import socket
import time
from typing import Any

from .checks_base import Failed, Plan, Recorder, Unanswered
from .checks_client import tls_context


def resp_command(*words: str) -> bytes:
    """A command in the protocol that Redis and Valkey speak."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def resp_reply(stream: Any) -> str | None:
    """A simple, integer or bulk reply; an error reply raises Failed."""
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise Unanswered("the connection closed")
    kind, text = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"-":
        raise Failed(text)
    if kind == b"$":
        length = int(text)
        return None if length < 0 else stream.read(length + 2)[:-2].decode(errors="replace")
    return str(text)


def check_cache(plan: Plan, record: Recorder) -> None:
    def round_trip() -> str:
        key, began = f"qwen:verify:{plan.run}:{plan.host}", time.monotonic()
        with (
            socket.create_connection((plan.address, plan.ports["cache"]), timeout=10) as raw,
            tls_context(plan).wrap_socket(raw, server_hostname=plan.address) as connection,
            connection.makefile("rwb") as stream,
        ):
            for command, wanted in (
                (("AUTH", plan.cache_user, plan.secrets["cache_password"]), "OK"),
                (("SET", key, plan.run, "EX", "60"), "OK"),
                (("GET", key), plan.run),
                (("DEL", key), "1"),
            ):
                stream.write(resp_command(*command))
                stream.flush()
                reply = resp_reply(stream)
                if reply != wanted:
                    raise Failed(f"{command[0]} answered {reply!r}")
            version = connection.version()
        return f"SET, GET, DEL over {version} in {(time.monotonic() - began) * 1000:.0f} ms"

    record.check("round trip", round_trip)
