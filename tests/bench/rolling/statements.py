"""SQL of the constant load: writers and readers on a host of the platform, through both poolers.

The clients are those of make chaos-postgres, at a rate. They run in the network namespace of a host, because the
firewall lets nobody else to PgBouncer, and with this machine's Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.errors import LabError
from lab.host import Host
from tests.bench.rolling.records import SQL_READ, SQL_WRITE, Record
from tests.chaos.postgres import cluster
from tests.chaos.postgres.attempts import OK, REOPENED, Attempt, Read, Row, parse
from tests.chaos.postgres.cluster import DATABASE, TABLE, Cluster, leader_of, wait_until
from tools.runs import ROOT

STATEMENT_S = 10.0
END_S = READ_S = 30.0
WRITERS = READERS = 2


def clients(target: Cluster, run: str, rate: float) -> list[dict[str, Any]]:
    """As many writers as readers, `rate` statements a second together, beginning at each pooler in turn."""
    found = target.clients(run)
    chosen = [each for each in found if each["kind"] == "writer"][:WRITERS]
    chosen += [each for each in found if each["kind"] == "reader"][:READERS]
    return [{**each, "rate": rate / len(chosen), "looks": True} for each in chosen]


@dataclass
class Statements:
    """`start`, then `stop`. `began`: monotonic seconds of the load's zero. Host `on` carries the clients."""

    target: Cluster
    on: Host
    run: str
    rate: float
    began: float
    attempts: list[Attempt | Read] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Raises LabError where no table can be made."""
        leader = leader_of(self.target.views())
        if not leader:
            raise LabError("PostgreSQL has no leader", "make pg-status")
        cluster.make_table(self.target.lab, leader, TABLE, DATABASE)
        inside = ["nsenter", f"--target={self.on.require_init()}", "--net"]
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "tests.chaos.postgres.client"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        config = {
            "common": {"run": self.run, "table": TABLE, "statement_s": STATEMENT_S},
            "clients": clients(self.target, self.run, self.rate),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(config) + "\n")
        self._process.stdin.flush()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the clients and waits for their last lines."""
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            self.problems.append(f"the SQL clients ended by themselves with status {self._process.returncode}")
        else:
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self.problems.append(f"the SQL clients did not end within {END_S:.0f} s: their last rows are not judged")
        self._thread.join(5)

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self.attempts.append(parse(line))

    def records(self) -> list[Record]:
        return [record(each, self.began) for each in list(self.attempts)]

    def lost(self) -> list[str]:
        """Acknowledged rows that the leader has not; a line for each, or why it cannot be known."""
        found: list[Row] | None = None

        def unread() -> str:
            nonlocal found
            leader = leader_of(self.target.views())
            found = cluster.rows(self.target.lab, leader, self.run, TABLE, DATABASE) if leader else None
            return "PostgreSQL's leader does not answer" if found is None else ""

        _, why = wait_until(unread, READ_S, every=2.0)
        if found is None:
            return [f"the acknowledged rows cannot be counted: {why}"]
        there = {(row.client, row.seq) for row in found}
        return [
            f"row {client}/{seq} was acknowledged and is not there" for client, seq in missing(self.attempts, there)
        ]

    def clean(self) -> None:
        """Takes the run's table away; left where nobody leads."""
        if leader := leader_of(self.target.views()):
            cluster.sql(self.target.lab.host(leader), f"DROP TABLE IF EXISTS {TABLE};", seconds=20)


def missing(attempts: Sequence[Attempt | Read], there: set[tuple[str, int]]) -> list[tuple[str, int]]:
    """(client, seq) of what was acknowledged and is not there."""
    acknowledged = [(each.client, each.seq) for each in attempts if isinstance(each, Attempt) and each.acknowledged]
    return [each for each in acknowledged if each not in there]


def record(each: Attempt | Read, began: float) -> Record:
    """The clients note a statement's scheduled time as its start."""
    start, end = round(each.start - began, 4), round(each.end - began, 4)
    kind = SQL_WRITE if isinstance(each, Attempt) else SQL_READ
    degraded = REOPENED if each.outcome == OK and each.detail == REOPENED else ""
    return Record(kind, start, start, end, each.outcome, where=each.server, degraded=degraded, detail=each.detail)
