"""Runs inside a server's host, with what that host has: appends rows by the local socket, whether it leads or not.

    python3 -c SCRIPT RUN NODE TABLE DATABASE SOCKET PAUSE LIMIT

It is the client on the old leader's side: no cut keeps it from its server, so a server that acknowledges when it
must not is caught here. Prints lines as client.py does, until standard input ends or the host does.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time

import psycopg2

RUN, NODE, TABLE, DATABASE, SOCKET = sys.argv[1:6]
PAUSE, LIMIT = float(sys.argv[6]), float(sys.argv[7])
NAME = f"direct-{NODE}-{os.getpid()}-{int(time.monotonic() * 1000)}"
INSERT = (
    f"INSERT INTO {TABLE} (run, client, seq) VALUES (%s, %s, %s) "
    "RETURNING ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
)
state = {"deadline": None, "handle": None, "gave_up": False}


def watch():
    """Ends a statement past its limit by closing the connection under it, not by a cancel request."""
    while True:
        time.sleep(0.05)
        deadline, handle = state["deadline"], state["handle"]
        if deadline and handle and time.monotonic() > deadline and not state["gave_up"]:
            state["gave_up"] = True
            with contextlib.suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)


def end():
    sys.stdin.read()
    os._exit(0)


def attempt(connection, number):
    cursor = connection.cursor()
    del connection.notices[:]
    state.update(gave_up=False, deadline=time.monotonic() + LIMIT)
    try:
        cursor.execute(INSERT, (RUN, NAME, number))
        timeline = cursor.fetchone()[0]
    finally:
        state["deadline"] = None
    warned = [notice for notice in connection.notices if notice.startswith("WARNING")]
    return ("warned" if warned else "ok"), timeline, " ".join(warned)[:160]


def main():
    threading.Thread(target=watch, daemon=True).start()
    threading.Thread(target=end, daemon=True).start()
    connection, number = None, 0
    while True:
        number += 1
        start, timeline = time.monotonic(), 0
        try:
            if connection is None or connection.closed:
                connection = psycopg2.connect(host=SOCKET, dbname=DATABASE, connect_timeout=2)
                connection.autocommit = True
                state["handle"] = socket.socket(fileno=os.dup(connection.fileno()))
            outcome, timeline, detail = attempt(connection, number)
        except psycopg2.Error as error:
            outcome = "timeout" if state["gave_up"] else error.pgcode or type(error).__name__
            detail = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
            if error.pgcode != "25006" and connection is not None:  # read-only: it is a follower, and may lead later
                state["handle"].close()
                connection.close()
                connection = None
        print(json.dumps(["w", NAME, number, start, time.monotonic(), outcome, NODE, timeline, detail]), flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
