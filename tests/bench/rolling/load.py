"""A constant load on a running platform, as its clients make it: chat, streams, ingest, fetch, SQL.

    python -m tests.bench.rolling.load --inventory inventories/lab --seconds 300 --out .cache/bench/load.json

Requests begin when the schedule says, whether or not earlier ones were answered, and a latency counts from then. What
was acknowledged is looked for at the end. Once a second the gateways say which instances they send requests to. Ctrl-C
ends it early. Exits 1 where a request failed or something acknowledged is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from lab.errors import LabError
from tests.bench.qwen.load import until
from tests.bench.rolling import plan, records, serving
from tests.bench.rolling.records import CHAT, STREAM, Record
from tests.bench.rolling.statements import Statements
from tests.chaos.postgres.cluster import wait_until
from tests.chaos.postgres.run import commit
from tests.chaos.qwen.client import connection, send
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.qwen.questions import Ask
from tests.chaos.qwen.seen import FETCH, INGEST
from tools import ask
from tools.inventory_vars import InventoryError
from tools.runs import ROOT, load_average

PLANS: dict[str, Callable[[str, int], Ask]] = {
    CHAT: plan.chat,
    STREAM: plan.stream,
    INGEST: plan.ingest,
    FETCH: plan.fetch,
}
CONNECTIONS = 3
"""Of each kind of request."""

INVENTORY = ROOT / "inventories" / "lab"
PAGE, SHOWN = 500, 20
LIVE_S = 90.0
"""Until everything acknowledged has to be live after the load."""

DELETE_EVERY_S = 0.2
"""Far from the 600 requests a minute that the gateway lets a key make: the next round needs some, too."""


@dataclass(frozen=True)
class Rates:
    """A second. `sql`: writes and reads together. 0 leaves a kind out.

    The defaults leave two cores, which the lab's hosts and a playbook share, room for the playbook: at four times as
    much PostgreSQL's followers suspected a leader that was only late, and one failover followed the other.
    """

    chat: float = 0.5
    stream: float = 0.25
    ingest: float = 0.5
    fetch: float = 0.5
    sql: float = 3.0

    def of(self, kind: str) -> float:
        return float(asdict(self)[kind])

    def times(self, factor: float) -> Rates:
        return Rates(**{name: value * factor for name, value in asdict(self).items()})


@dataclass
class Result:
    """What a load saw. Times are seconds since it began; `marks` are (seconds, label).

    `lost`: a line for each thing that was acknowledged and is not there, or why that cannot be known. `behind_s`: how
    late the generator itself was at worst; above a fraction of a second the machine was too busy for the times.
    """

    at: str
    seconds: float
    rates: Rates
    marks: list[tuple[float, str]]
    records: list[Record]
    serving: list[serving.Sample]
    lost: list[str]
    problems: list[str]
    behind_s: float
    load: tuple[float, float]

    @property
    def failed(self) -> list[Record]:
        return [each for each in self.records if each.failed]

    @property
    def clean(self) -> bool:
        return not self.failed and not self.lost and not self.problems and bool(self.records)

    def between(self, first: str, last: str = "") -> tuple[float, float]:
        """From the mark `first` to the mark `last`, or to the load's end. Raises KeyError where it is not there."""
        when = {label: at for at, label in self.marks}
        return when[first], when[last] if last else self.seconds

    def as_dict(self) -> dict[str, Any]:
        whole = records.summary(self.records, self.seconds)
        least = {tier: serving.least(self.serving, tier) for tier in serving.TIERS}
        said = {"least_serving": least, "serving_unknown": serving.unknown(self.serving)}
        return {"commit": commit(), "summary": whole, **said, **asdict(self)}


@dataclass
class Load:
    """`start`, `mark` moments, `stop` gives the result. A thread, a process for SQL, a thread for each gateway.

    `on`: the host that carries the SQL clients, a QWEN or PBML host; the first QWEN host without a PgBouncer if empty.
    """

    deployed: Deployed
    rates: Rates = Rates()
    on: str = ""
    run: str = ""
    records: list[Record] = field(default_factory=list)

    def start(self) -> None:
        """Raises LabError, AskError where the platform does not let it begin."""
        self.run = self.run or f"rolling-{int(time.time())}"
        self._model = self.deployed.model()
        self.deployed.teach()
        self._at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._load_before = load_average()
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._behind_s = 0.0
        self._acknowledged: set[str] = set()
        self._marks: list[tuple[float, str]] = []
        self._began = time.monotonic()
        self._ready = threading.Event()
        self._statements: Statements | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()
        self._ready.wait()
        try:
            if self.rates.sql and self._failure is None:
                self._statements = self._sql()
                self._statements.start()
        except BaseException:
            self._over.set()
            self._thread.join()
            raise
        self._watch = serving.Watch(self.deployed.hosts("gateway"), self._began)
        self._watch.start()

    def mark(self, label: str) -> None:
        """Remember this moment by a name."""
        self._marks.append((self.now(), label))

    def now(self) -> float:
        """Seconds since the load began."""
        return round(time.monotonic() - self._began, 2)

    def so_far(self) -> list[Record]:
        """What has come back; at any time."""
        return [*list(self.records), *(self._statements.records() if self._statements is not None else ())]

    def stop(self) -> Result:
        """Ends the schedule, waits for all answers, looks for everything that was acknowledged.

        Raises what broke the generator itself.
        """
        seconds = self.now()
        self._over.set()
        self._thread.join()
        self._watch.stop()
        if self._statements is not None:
            self._statements.stop()
        if self._failure is not None:
            raise self._failure
        found = sorted(self.so_far(), key=lambda each: each.scheduled)
        lost, problems = self._lost(), [] if self._statements is None else self._statements.problems
        if not lost:
            self._clean()
        return Result(
            self._at, seconds, self.rates, self._marks, found, self._watch.samples, lost, problems,
            round(self._behind_s, 3), (self._load_before, load_average()),
        )  # fmt: skip

    def _sql(self) -> Statements:
        poolers = self.deployed.names("pgbouncer")
        hosts = self.deployed.names("qwen")
        name = self.on or next((each for each in hosts if each not in poolers), hosts[0])
        host = self.deployed.lab.host(name)
        return Statements(self.deployed.cluster, host, self.run, self.rates.sql, self._began)

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _send_all(self) -> None:
        client = self.deployed.client
        pools = {
            kind: [connection(self.deployed.base_url, client.ca, client.key) for _ in range(CONNECTIONS)]
            for kind in PLANS
            if self.rates.of(kind)
        }
        # The zero: what it took to make the clients is no part of the load.
        self._began = time.monotonic()
        self._ready.set()
        try:
            behind = await asyncio.gather(
                *(
                    until(self._over, self.rates.of(kind), partial(self._one, kind, pool))
                    for kind, pool in pools.items()
                )
            )
            self._behind_s = max(behind, default=0.0)
        finally:
            for each in (client for pool in pools.values() for client in pool):
                with suppress(Exception):
                    await each.aclose()

    async def _one(self, kind: str, pool: list[httpx.AsyncClient], number: int, intended: float) -> None:
        seen = await send(pool[number % len(pool)], number, PLANS[kind](self.run, number), self._model)
        record = records.of_http(kind, intended, self._began, seen)
        if kind == INGEST and not record.failed:
            self._acknowledged.add(plan.document_id(self.run, number))
        self.records.append(record)

    def _clean(self) -> None:
        """Removes rows and documents: these would be the context of the questions of every later run.

        A document that cannot be deleted stays, with those after it.
        """
        if self._statements is not None:
            self._statements.clean()
        with suppress(ask.AskError):
            for name in sorted(self._acknowledged):
                self.deployed.client.expect(202, "DELETE", f"/v1/documents/{quote(name)}")
                time.sleep(DELETE_EVERY_S)

    def _lost(self) -> list[str]:
        """Documents by PBML's own list, rows by the leader's."""

        def not_live() -> str:
            waiting = self._acknowledged - live(self.deployed.client, self.run) if self._acknowledged else set()
            return ", ".join(sorted(waiting))

        _, waiting = wait_until(not_live, LIVE_S, every=2.0)
        names = waiting.split(", ") if waiting else []
        lost = [f"document {name} was acknowledged and is not live {LIVE_S:.0f} s after the load" for name in names]
        return [*lost, *(self._statements.lost() if self._statements is not None else ())]


def live(client: ask.Client, run: str) -> set[str]:
    """Ids of a run's documents that are live; without those that a failed answer would have had."""
    found: set[str] = set()
    cursor = ""
    while True:
        more = f"&cursor={quote(cursor)}" if cursor else ""
        try:
            body = client.expect(200, "GET", f"/v1/documents?prefix={quote(run)}-&status=live&limit={PAGE}{more}").body
        except ask.AskError:
            return found
        found |= {each["document_id"] for each in body["documents"]}
        cursor = body["next_cursor"]
        if not cursor:
            return found


def summary_lines(result: Result) -> list[str]:
    """What an operator reads at the end."""
    lines = [
        f"{kind:<10} {n['requests']:>6} requests, {n['failed']} failed, p50 {n['p50_s']} s, p95 {n['p95_s']} s, "
        f"most {n['most_s']} s{', degraded ' + str(n['degraded']) if n['degraded'] else ''}"
        for kind, n in records.summary(result.records, result.seconds).items()
    ]
    least = ", ".join(f"{tier} {serving.least(result.serving, tier)}" for tier in serving.TIERS)
    lines.append(f"serving at least: {least}; {serving.unknown(result.serving)} looks without an answer")
    lines.append(f"generator behind at most {result.behind_s} s, load {result.load[0]} to {result.load[1]}")
    found = [*records.failures(result.records), *result.lost, *result.problems]
    return [*lines, *found[:SHOWN], *([f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])]


def write(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.as_dict()) + "\n")


def add_rates(parser: argparse.ArgumentParser) -> None:
    """An option for each rate."""
    for each in fields(Rates):
        parser.add_argument(f"--{each.name}", type=float, default=each.default, help="a second; 0: none")


def rates_of(options: argparse.Namespace) -> Rates:
    return Rates(**{each.name: getattr(options, each.name) for each in fields(Rates)})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rolling-load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="the result as JSON, every request in it")
    parser.add_argument("--on", default="", help="the host that carries the SQL clients, a QWEN or PBML host")
    add_rates(parser)
    options = parser.parse_args(arguments)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        load = Load(Deployed(options.inventory.resolve()), rates_of(options), options.on)
        load.start()
        over.wait(options.seconds)
        result = load.stop()
    except (LabError, ask.AskError, InventoryError) as error:
        print(f"rolling-load: {error}", file=sys.stderr)
        return 1
    if options.out is not None:
        write(options.out, result)
    print("\n".join(summary_lines(result)))
    return 0 if result.clean else 1


if __name__ == "__main__":
    sys.exit(main())
