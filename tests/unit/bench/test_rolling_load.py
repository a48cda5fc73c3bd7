"""The constant load: what it calls failed, degraded, slow and lost. The platform here is a pretended one."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.bench.qwen.load import until
from tests.bench.rolling import load, plan, records, serving, statements
from tests.bench.rolling.load import Load, Rates
from tests.bench.rolling.records import Record
from tests.chaos.postgres import client as sql
from tests.chaos.postgres.attempts import Attempt, Read
from tests.chaos.qwen import client as http
from tests.chaos.qwen import seen as s
from tools import ask

CHUNK = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


class Pretended(BaseHTTPRequestHandler):
    """The gateway's four paths. `server.fault` names what it does wrong, `server.documents` what it has taken."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        said = {"Content-Type": kind, "Content-Length": str(len(body)), "X-DevMentor-Served-By": "engine"}
        if self.server.fault == "degraded":
            said["X-DevMentor-Served-By"] = "cache-stale"
        for name, value in {**said, "X-DevMentor-Context": "ok", "X-DevMentor-Instance": "q1"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/v1/models":
            self.answer(200, b'{"data": [{"id": "m"}]}')
        elif "prefix" in parse_qs(url.query):
            names = sorted(self.server.documents)
            if self.server.fault == "loses":
                names = names[1:]
            # Pages of two: the cursor has to be followed.
            at = int(parse_qs(url.query).get("cursor", ["0"])[0])
            page = [{"document_id": name} for name in names[at : at + 2]]
            following = str(at + 2) if at + 2 < len(names) else None
            self.answer(200, json.dumps({"documents": page, "next_cursor": following}).encode())
        else:
            self.answer(200, b'{"status": "live", "version": 1}')

    def do_DELETE(self) -> None:
        self.server.deleted.add(self.path.rpartition("/")[2])
        self.answer(202, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.fault == "errors":
            self.answer(503, b'{"error": {"code": "unavailable", "message": "no"}}')
        elif self.path == "/v1/documents":
            self.server.documents.add(body["id"])
            self.answer(202, b'{"document_id": "d", "version": 1, "watermark": "pg:1", "durability": "quorum"}')
        elif self.path == "/v1/context":
            degraded = self.server.fault == "degraded"
            self.answer(200, json.dumps({"chunks": [], "degraded": degraded}).encode())
        elif body.get("stream"):
            events = [CHUNK] if self.server.fault == "truncates" else [CHUNK, END]
            text = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
            self.answer(200, text.encode(), "text/event-stream")
        else:
            self.answer(200, b'{"choices": [{"message": {"content": "a"}}]}')


class Plain(ask.Client):
    """The client without TLS."""

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> ask.Answer:
        import httpx

        found = httpx.request(method, f"http://{self.host}:{self.port}{path}", json=body)
        return ask.Answer(found.status_code, {}, found.json(), 0.0)


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pretended)
    server.fault, server.documents, server.deleted = "", set(), set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setattr(load, "LIVE_S", 0.5)
    port = server.server_address[1]
    server.deployed = SimpleNamespace(
        client=Plain("127.0.0.1", "", "key", port), base_url=f"http://127.0.0.1:{port}", model=lambda: "m",
        teach=lambda: None, hosts=lambda group: [],
    )  # fmt: skip
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def loaded(platform: Any, fault: str, seconds: float = 1.0) -> load.Result:
    platform.fault = fault
    found = Load(platform.deployed, Rates(8, 8, 8, 8, 0))
    found.start()
    found.mark("here")
    time.sleep(seconds)
    return found.stop()


def test_a_pretended_platform_that_is_well_fails_nothing_and_loses_nothing(platform: Any) -> None:
    result = loaded(platform, "")
    assert result.clean, (records.failures(result.records), result.lost)
    assert {each.kind for each in result.records} == {"chat", "stream", "ingest", "fetch"}
    assert len(platform.documents) == sum(each.kind == s.INGEST for each in result.records) > 2
    assert platform.deleted == platform.documents, "they are no context of later runs"
    assert all(each.latency_s > 0 and each.started >= each.scheduled for each in result.records)
    assert result.between("here")[0] < 0.5 < result.between("here")[1]
    assert json.loads(json.dumps(result.as_dict()))["summary"]["chat"]["failed"] == 0


@pytest.mark.parametrize(("fault", "kinds"), [("errors", 4), ("truncates", 1)])
def test_what_a_pretended_platform_does_wrong_is_a_failure(platform: Any, fault: str, kinds: int) -> None:
    result = loaded(platform, fault)
    assert not result.clean
    assert len({each.kind for each in result.failed}) == kinds
    assert {each.outcome for each in result.failed} == ({"503 unavailable"} if kinds == 4 else {s.UNFINISHED})


def test_what_a_pretended_platform_answers_from_less_is_degraded_and_not_failed(platform: Any) -> None:
    result = loaded(platform, "degraded")
    assert result.clean
    assert {each.degraded for each in result.records if each.kind == "chat"} == {"cache-stale"}
    assert {each.degraded for each in result.records if each.kind == s.FETCH} == {"context"}


def test_a_document_that_a_pretended_platform_loses_is_named(platform: Any) -> None:
    result = loaded(platform, "loses")
    assert len(result.lost) == 1, result.lost
    assert "was acknowledged and is not live" in result.lost[0]
    assert not result.clean


async def test_the_schedule_does_not_wait_and_ends_when_it_is_told_to() -> None:
    over, begun = threading.Event(), []

    async def one(number: int, intended: float) -> None:
        begun.append(intended)
        if number == 9:
            over.set()
        await asyncio.sleep(0.3)

    await until(over, 100, one)
    steps = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert steps == pytest.approx([0.01] * len(steps)), "what is intended is evenly spaced, however late the machine is"


def test_sql_at_a_rate_counts_from_the_schedule_while_a_statement_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    stop = threading.Event()

    class Stub(sql.Client):
        def once(self, number: int, start: float) -> str:
            starts.append(start)
            if number == 2:
                time.sleep(0.3)
            if number == 12:
                stop.set()
            return "ok"

    Stub("w0", {"rate": 50}, sql.Output(), stop).run()
    steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert steps == pytest.approx([0.02] * 11)


def test_rows_that_were_acknowledged_and_are_not_there_are_missing() -> None:
    attempts = [Attempt("w0", 1, 0, 1, "ok"), Attempt("w0", 2, 1, 2, "timeout"), Read("r0", 0, 1, "ok", "w0")]
    assert statements.missing(attempts, set()) == [("w0", 1)]
    assert statements.missing(attempts, {("w0", 1)}) == []
    assert statements.record(attempts[1], 1.0).failed


STAT = """# pxname,svname,qcur,status,weight
qwen,FRONTEND,,OPEN,
qwen,q1,0,{q1},1
qwen,q2,0,UP 1/2,1
qwen,q1-surge,0,{surge},1
qwen,q2-last,0,no check,1
qwen,BACKEND,0,UP,3
pbml,p1,0,DOWN,1
"""


def test_serving_are_those_that_get_requests() -> None:
    assert serving.up(STAT.format(q1="DRAIN", surge="UP")) == {"qwen": ["q1-surge", "q2"], "pbml": []}
    assert serving.up(STAT.format(q1="UP", surge="MAINT")) == {"qwen": ["q1", "q2"], "pbml": []}
    assert serving.up("") == {}


def test_the_fewest_are_told_and_what_is_not_known_is_no_number() -> None:
    silent = serving.Sample(1.0, "g1", error="refused")
    well, fewer = serving.Sample(0.0, "g1", {"qwen": ["a", "b"]}), serving.Sample(2.0, "g2", {"qwen": ["a"]})
    assert serving.least([well, silent, fewer], "qwen") == 1
    assert serving.least([silent], "qwen") is None
    assert serving.unknown([well, silent, fewer]) == 1


def test_a_gateway_is_asked_by_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(4)

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                assert connection.recv(100) == b"show stat\n"
                connection.sendall(STAT.format(q1="UP", surge="MAINT").encode())

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setattr(serving, "SOCKET", f"/proc/{{init}}/root{path}")
        host = SimpleNamespace(name="g1", require_init=os.getpid)
        watch = serving.Watch([host], time.monotonic())
        watch.start()
        thread.join()
        watch.stop()
    assert watch.samples[0].up["qwen"] == ["q1", "q2"]
    path.unlink()
    gone = serving.Watch([host], time.monotonic())
    gone.start()
    gone.stop()
    assert gone.samples[0].up == {}
    assert gone.samples[0].error


def at(second: float, took: float, outcome: str = s.OK, kind: str = "chat") -> Record:
    return Record(kind, second, second, second + took, outcome)


def test_numbers_of_a_time_are_beside_those_of_the_baseline() -> None:
    before = [at(n, 0.1) for n in range(20)]
    during = [*(at(20 + n, 0.2) for n in range(18)), at(38, 1.0), at(39, 0.1, s.CUT)]
    found = records.summary(records.within([*before, *during], 20, 40), 20.0, before)["chat"]
    assert (found["requests"], found["failed"], found["failures"], found["slow"]) == (20, 1, {s.CUT: 1}, 1)
    assert found["failed_per_s"] == 0.05
    assert found["p95_ratio"] == pytest.approx(10.0)
    alone = records.summary(during, 20.0)["chat"]
    assert (alone["slow"], alone["p95_ratio"]) == (None, None)


def test_what_only_failed_has_no_times() -> None:
    found = records.summary([at(0, 1, "503 x")], 1.0)["chat"]
    assert found["p95_s"] is None
    assert json.dumps(found), "no infinity in JSON"


def test_documents_are_the_run_s_own_and_streams_are_long_at_times() -> None:
    assert plan.ingest("r1", 3).body["id"] == plan.document_id("r1", 3) == "r1-3"
    assert sum("ignore_eos" in plan.stream("r1", n).body for n in range(8)) == 2
    questions = [plan.chat("r1", n).body["messages"][0]["content"] for n in range(100)]
    assert len(set(questions)) == 80 + plan.REPEATED


@pytest.mark.parametrize(
    ("status", "body", "outcome", "durability"),
    [
        (202, b'{"version": 1, "durability": "local"}', "ok", "local"),
        (202, b'{"version": 1}', s.UNREADABLE, ""),
        (200, b'{"version": 1, "durability": "quorum"}', "200 ?", ""),
        (429, b'{"error": {"code": "rate_limit_exceeded"}}', "429 rate_limit_exceeded", ""),
    ],
)
def test_an_ingest_is_taken_with_202_and_its_durability_alone(
    status: int, body: bytes, outcome: str, durability: str
) -> None:
    assert http.pbml_outcome(status, body, s.INGEST)[:2] == (outcome, durability)
    local = s.Seen(1, s.INGEST, 0, 1, 1, "ok", served_by="local")
    assert records.less_than_whole(s.INGEST, local) == "durability local"
