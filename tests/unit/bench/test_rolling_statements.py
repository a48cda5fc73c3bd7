"""The SQL of the constant load against a real server: what the clients print is what the load reads."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psycopg

from tests.bench.rolling import statements
from tests.bench.rolling.records import SQL_READ, SQL_WRITE
from tests.chaos.postgres.attempts import parse
from tests.chaos.postgres.cluster import MAKE_TABLE
from tests.unit.services.pbml.private_postgres import Postgres

ROOT = Path(__file__).parents[3]
TABLE = "public.rolling_rows"


def test_clients_keep_their_rate_and_every_acknowledged_row_is_found() -> None:
    with Postgres(locale=None) as made, psycopg.connect(f"{made.conninfo()} dbname=postgres", autocommit=True) as own:
        conninfo = made.conninfo()
        own.execute(MAKE_TABLE.format(table=TABLE))
        connect = {**psycopg.conninfo.conninfo_to_dict(conninfo), "dbname": "postgres"}
        del connect["connect_timeout"]  # the client has its own
        clients = [
            {"kind": "writer", "name": "w0", "connect": connect, "rate": 10},
            {"kind": "reader", "name": "r0", "reads": "w0", "connect": connect, "rate": 10},
        ]
        common = {"run": "r", "table": TABLE, "statement_s": 10}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.postgres.client"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        began = time.monotonic()
        process.stdin.write(json.dumps({"common": common, "clients": clients}) + "\n")
        process.stdin.flush()
        time.sleep(3.0)
        # Every connection is cut: each client has one failure, and goes on.
        own.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'pbml'"
        )
        time.sleep(2.0)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        attempts = [parse(line) for line in output.splitlines()]
        there = {(client, seq) for client, seq in own.execute(f"SELECT client, seq FROM {TABLE} WHERE run = 'r'")}
    found = [statements.record(each, began) for each in attempts]
    for kind in (SQL_WRITE, SQL_READ):
        mine = [each for each in found if each.kind == kind]
        assert len(mine) > 10
        gaps = [round((each.scheduled - mine[0].scheduled) * 10, 1) for each in mine]
        assert gaps == [float(number) for number in range(len(mine))], "evenly spaced, whatever became of those before"
        assert len([each for each in mine if each.failed]) == 1
    assert statements.missing(attempts, there) == []
    assert statements.missing(attempts, there - {("w0", 1)}) == [("w0", 1)]
