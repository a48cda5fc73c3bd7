"""Clients that append numbered rows through the poolers, and readers that watch how far they came.

    python -m tests.chaos.postgres.client < CONFIG

A process of its own, so that what measures does not disturb what is measured. The first line of standard input is the
configuration (JSON, it holds the password); its end stops the clients. Prints a line for each attempt (attempts.py).
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg

from tests.chaos.postgres.attempts import OK, REOPENED, TIMEOUT, WARNED

RECONNECT_PAUSE = 0.02
CONNECT_SECONDS = 2  # the least that libpq takes
INSERT = """
INSERT INTO {table} (run, client, seq) VALUES (%s, %s, %s)
RETURNING coalesce(host(inet_server_addr()), ''),
  ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
"""
READ = """
SELECT coalesce(max(seq), 0), coalesce(host(inet_server_addr()), '') FROM {table} WHERE run = %s AND client = %s
"""


def closed(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
    """Whether the server has closed it while it was idle."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if not poll.poll(0):
        return False
    try:
        connection.execute("")
    except psycopg.Error:
        return True
    return False


class Client(threading.Thread):
    """A client with one connection: it sends its next statement once the last was answered, refused or given up.

    That is after `pause_s`, or when it is due by `rate` (statements a second), however late. One that `looks` does as
    a pool that checks what it lends: a connection that was closed while it was idle is replaced before the statement.
    """

    def __init__(self, name: str, config: dict[str, Any], out: Output, stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.config, self.out, self.stop = config, out, stop
        self.pause, self.rate = float(config.get("pause_s", 0)), float(config.get("rate", 0))
        self.deadline: float | None = None
        self.gave_up = False
        self.warned = ""
        self.connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        connection = psycopg.connect(
            **self.config["connect"], autocommit=True, connect_timeout=CONNECT_SECONDS, prepare_threshold=None,
            tcp_user_timeout=3000, keepalives_idle=1, keepalives_interval=1, keepalives_count=3,
        )  # fmt: skip
        connection.add_notice_handler(self._notice)
        return connection

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if (notice.sqlstate or "").startswith("01"):
            self.warned = notice.message_primary or "warning"

    def execute(self, statement: str, values: tuple[Any, ...]) -> tuple[str, tuple[Any, ...], str]:
        """(outcome, row, detail) of one statement, within the limit."""
        self.warned, self.gave_up = "", False
        reopened = ""
        try:
            if self.connection is not None and self.config.get("looks") and closed(self.connection):
                self.connection.close()
                self.connection, reopened = None, REOPENED
            if self.connection is None:
                self.connection = self.connect()
            self.deadline = time.monotonic() + float(self.config["statement_s"])
            row = self.connection.execute(statement, values).fetchone() or ()
            return (WARNED if self.warned else OK), row, self.warned or reopened
        except psycopg.Error as error:
            outcome = TIMEOUT if self.gave_up else error.sqlstate or type(error).__name__
            if self.connection is not None:
                with suppress(psycopg.Error):
                    self.connection.close()
            self.connection = None
            return outcome, (), str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
        finally:
            self.deadline = None

    def give_up(self, now: float) -> None:
        """Called by the watch: end a statement that is past its limit by closing the connection under it.

        Not by a cancel request, which could turn the wait for replicas into a success with a WARNING.
        """
        connection, deadline = self.connection, self.deadline
        if connection is None or deadline is None or now < deadline or self.gave_up:
            return
        self.gave_up = True
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as handle:
            handle.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        number, begin = 0, time.monotonic()
        while not self.stop.is_set():
            number += 1
            start = time.monotonic()
            if self.rate:
                # Counted from when the schedule meant it, so that a wait for the statement before is part of it.
                start = begin + (number - 1) / self.rate
                if self.stop.wait(max(0.0, start - time.monotonic())):
                    return
            outcome = self.once(number, start)
            if not self.rate:
                self.stop.wait(self.pause if outcome == OK else RECONNECT_PAUSE)

    def once(self, number: int, start: float) -> str:
        raise NotImplementedError


class Writer(Client):
    def once(self, number: int, start: float) -> str:
        values = (self.config["run"], self.name, number)
        outcome, row, detail = self.execute(INSERT.format(table=self.config["table"]), values)
        server, timeline = row or ("", 0)
        self.out.line("w", self.name, number, start, time.monotonic(), outcome, server, timeline, detail)
        return outcome


class Reader(Client):
    def once(self, number: int, start: float) -> str:
        writer = self.config["reads"]
        outcome, row, detail = self.execute(READ.format(table=self.config["table"]), (self.config["run"], writer))
        position, server = row or (0, "")
        self.out.line("r", self.name, start, time.monotonic(), outcome, writer, position, server, detail)
        return outcome


class Output:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def line(self, *fields: Any) -> None:
        with self._lock, suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(fields) + "\n")
            sys.stdout.flush()


def main() -> int:
    config = json.loads(sys.stdin.readline())
    stop, out = threading.Event(), Output()
    clients: list[Client] = [
        {"writer": Writer, "reader": Reader}[entry["kind"]](entry["name"], {**config["common"], **entry}, out, stop)
        for entry in config["clients"]
    ]
    for client in clients:
        client.start()

    def watch() -> None:
        while not stop.wait(0.05):
            now = time.monotonic()
            for client in clients:
                client.give_up(now)

    threading.Thread(target=watch, daemon=True).start()
    sys.stdin.read()
    stop.set()
    # A statement in flight is waited for no longer than its limit: then its outcome stays unknown and is not recorded,
    # which would make its row look invented, so all of them end first.
    for client in clients:
        client.join(1.0)
        client.deadline = 0.0 if client.deadline is not None else None
        client.give_up(time.monotonic())
    for client in clients:
        client.join(CONNECT_SECONDS * 2 + 1.0)
    return 1 if any(client.is_alive() for client in clients) else 0


if __name__ == "__main__":
    sys.exit(main())
