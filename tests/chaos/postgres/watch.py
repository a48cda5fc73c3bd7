"""Starts the clients of a round and collects what they print."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.errors import LabError
from tests.chaos.postgres.attempts import Attempt, Read, parse
from tests.chaos.postgres.cluster import DATABASE, TABLE, Target, as_owner
from tools.runs import ROOT

DIRECT = Path(__file__).with_name("direct.py")
WRITE_PAUSE = 0.05
READ_PAUSE = 0.1
DIRECT_PAUSE = 0.2
STATEMENT_SECONDS = 10.0


@dataclass
class Watch:
    """The clients of one round. `start`, then read `attempts` at any time, then `stop`."""

    target: Target
    run: str
    table: str = TABLE
    database: str = DATABASE
    direct: bool = True
    attempts: list[Attempt] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def start(self) -> None:
        self._over = threading.Event()
        self._client = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.postgres.client"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        clients = [
            {**entry, "pause_s": READ_PAUSE if entry["kind"] == "reader" else WRITE_PAUSE}
            for entry in self.target.clients(self.run)
        ]
        common = {"run": self.run, "table": self.table, "statement_s": STATEMENT_SECONDS}
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps({"common": common, "clients": clients}) + "\n")
        self._client.stdin.flush()
        self._threads = [threading.Thread(target=self._collect, args=(self._client,), daemon=True)]
        if self.direct:
            self._threads += [threading.Thread(target=self._beside, args=(n,), daemon=True) for n in self.target.nodes]
        for thread in self._threads:
            thread.start()

    def acknowledged_since(self, moment: float) -> list[Attempt]:
        """Of the clients that go through the poolers or the proxy: what was sent and acknowledged after `moment`."""
        return [a for a in list(self.attempts) if a.acknowledged and not a.direct and a.start > moment]

    def stop(self) -> None:
        """Ends all clients and waits for their last lines."""
        self._over.set()
        assert self._client.stdin is not None
        self._client.stdin.close()
        try:
            self._client.wait(20)
        except subprocess.TimeoutExpired:
            self._client.kill()
            self._client.wait()
        for thread in self._threads:
            thread.join(5)

    def _collect(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):
                continue  # a process that was killed while it wrote
            record = parse(line)
            record = replace(record, server=self.target.server_name(record.server))
            if isinstance(record, Attempt):
                self.attempts.append(record)
            else:
                self.reads.append(record)

    def _beside(self, node: str) -> None:
        """Keeps a client on the node's own host for as long as that host runs, and begins again when it is back."""
        host = self.target.lab.host(node)
        arguments = [self.run, node, self.table, self.database, self.target.socket()]
        limits = [str(DIRECT_PAUSE), str(STATEMENT_SECONDS)]
        program = ["python3", "-c", DIRECT.read_text(), *arguments, *limits]
        while not self._over.wait(0.5):
            with suppress(LabError, OSError), subprocess.Popen(
                host.enter_command([*as_owner(host), *program]),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            ) as process:  # fmt: skip
                threading.Thread(target=self._end, args=(process,), daemon=True).start()
                self._collect(process)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Once the round is over: the client inside the host ends at the end of its standard input."""
        while process.poll() is None:
            if self._over.wait(0.2) and process.stdin is not None:
                process.stdin.close()
                return
