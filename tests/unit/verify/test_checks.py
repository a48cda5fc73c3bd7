"""verify's judgement: a wrong answer fails, no answer is unknown, and neither is ever a pass."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from module_utils.devmentor import checks, checks_report
from module_utils.devmentor.checks_base import Failed, Plan, Recorder, Row, Unanswered, poll
from module_utils.devmentor.checks_cache import check_cache
from module_utils.devmentor.checks_client import Answer, run_command
from module_utils.devmentor.checks_engines import judge_completion
from module_utils.devmentor.checks_host import check_host
from module_utils.devmentor.checks_monitoring import judge_rules, judge_targets
from module_utils.devmentor.checks_postgres import check_pgbouncer, judge_replica, judge_synchronous
from module_utils.devmentor.checks_qdrant import judge_collection, judge_raft
from module_utils.devmentor.checks_services import check_pbml


def plan(tls: dict[str, str] | None = None, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "host": "h1",
        "address": "127.0.0.1",
        "groups": (),
        "peers": {},
        "ports": {},
        "tls": tls or {},
        "secrets": {"api_key": "sk-very-secret"},
        "run": "abc123",
        "patience": 0.0,
    }
    return Plan(**{**values, **changes})


def outcome(function: Callable[[], str], **changes: Any) -> tuple[str, str]:
    recorder = Recorder(plan(**changes), "test")
    passed = recorder.check("it", function)
    (row,) = recorder.rows
    assert passed == (row.result == "pass")
    return row.result, row.evidence


def raising(error: Exception) -> Callable[[], str]:
    def function() -> str:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (Failed("wrong"), "fail"),
        (ConnectionRefusedError(111, "refused"), "fail"),
        (TimeoutError("timed out"), "unknown"),
        (Unanswered("no psql"), "unknown"),
        (KeyError("raft_info"), "unknown"),
        (ssl.SSLError("certificate verify failed"), "unknown"),
        (subprocess.TimeoutExpired("psql", 3), "unknown"),
    ],
)
def test_an_answer_that_is_wrong_fails_and_no_answer_is_unknown(error: Exception, result: str) -> None:
    assert outcome(raising(error))[0] == result


def test_evidence_is_one_line_without_secrets() -> None:
    assert outcome(lambda: "a\nb sk-very-secret") == ("pass", "a b ***")
    assert "sk-very-secret" not in outcome(raising(Failed("Bearer sk-very-secret")))[1]


def test_polling_ends_with_the_last_complaint() -> None:
    answers = iter([Failed("first"), OSError("second")])

    def function() -> str:
        error = next(answers, None)
        if error:
            raise error
        return "third"

    assert poll(function, patience=1, pause=0.001) == "third"
    with pytest.raises(Failed, match="still"):
        poll(raising(Failed("still")), patience=0.01, pause=0.005)


def replica(**changes: Any) -> dict[str, Any]:
    return {"state": "streaming", "sync": "quorum", "lag_bytes": 0, "lag_seconds": 0.01, **changes}


def test_a_replica_as_its_primary_sees_it() -> None:
    assert judge_replica(replica()) == "streaming, quorum, lag 0 B, 0.01 s"
    late = [replica(lag_bytes=10**9), replica(lag_seconds=60), replica(lag_bytes=None)]
    for bad in (None, replica(state="catchup"), *late):
        with pytest.raises(Failed):
            judge_replica(bad)


def test_commits_wait_for_enough_replicas() -> None:
    assert "2 of 3 replicas count" in judge_synchronous(
        "ANY 2 (b, c, d)", [replica(), replica(), replica(sync="async")]
    )
    with pytest.raises(Failed, match="1 of 1"):
        judge_synchronous("ANY 2 (b, c, d)", [replica()])
    with pytest.raises(Failed, match="wait for no replica"):
        judge_synchronous("", [replica()] * 3)


def collection(**changes: Any) -> dict[str, Any]:
    local = [{"shard_id": shard, "state": "Active"} for shard in range(6)]
    remote = [{"shard_id": shard, "state": "Active", "peer_id": peer} for shard in range(6) for peer in (1, 2)]
    return {"shard_count": 6, "local_shards": local, "remote_shards": remote, "shard_transfers": [], **changes}


def test_a_collection_is_whole_only_with_every_replica_active_and_none_moving() -> None:
    assert judge_collection(collection(), 3) == "6 shards x 3 replicas Active, no transfer"
    dead = [{"shard_id": 4, "state": "Dead", "peer_id": 1}]
    with pytest.raises(Failed, match="shard 4 Dead"):
        judge_collection(collection(remote_shards=[*collection()["remote_shards"], *dead]), 3)
    with pytest.raises(Failed, match="transfers"):
        judge_collection(collection(shard_transfers=[{}]), 3)
    with pytest.raises(Failed, match="3 of each"):
        judge_collection(collection(remote_shards=[]), 3)
    with pytest.raises(Failed, match="no shards"):
        judge_collection(collection(local_shards=[], remote_shards=[]), 3)


def peer(commit: int = 40, pending: int = 0, thread: str = "working", peers: int = 2) -> dict[str, Any]:
    return {
        "status": "enabled",
        "peers": {str(number): {} for number in range(peers)},
        "raft_info": {"commit": commit, "pending_operations": pending},
        "consensus_thread_status": {"consensus_thread_status": thread},
    }


@pytest.mark.parametrize(
    ("view", "complaint"),
    [
        (peer(commit=39), "commits differ: a 40, b 39"),
        (peer(pending=2), "b has 2 pending"),
        (peer(thread="stopped_with_err"), "thread of b is stopped"),
        (peer(peers=1), "b knows 1 peers of 2"),
        ({"status": "disabled"}, "b is not in cluster mode"),
    ],
)
def test_consensus(view: dict[str, Any], complaint: str) -> None:
    assert "commit 40" in judge_raft({"a": peer(), "b": peer()})
    with pytest.raises(Failed, match=complaint):
        judge_raft({"a": peer(), "b": view})


def answer(served: str | None = None, tokens: int = 4, text: str = "x") -> Answer:
    body = {"usage": {"completion_tokens": tokens}, "choices": [{"message": {"content": text}}]}
    return Answer(200, {"x-devmentor-served-by": served} if served else {}, json.dumps(body).encode())


def test_a_token_counts_only_when_the_engine_made_it() -> None:
    assert judge_completion(answer()) == "4 tokens"
    assert judge_completion(answer("engine")) == "4 tokens by the engine"
    for bad in (answer("degraded"), answer("cache-l2"), answer(tokens=0, text="")):
        with pytest.raises(Failed):
            judge_completion(bad)


def test_prometheus() -> None:
    up = {"labels": {"job": "node", "instance": "a:9100"}, "health": "up"}
    assert judge_targets([up]) == "1 targets up"
    with pytest.raises(Failed, match="1 of 2 not up: node b:9100 unknown"):
        judge_targets([up, {"labels": {"job": "node", "instance": "b:9100"}, "health": "unknown"}])
    with pytest.raises(Failed):
        judge_targets([])
    assert judge_rules([{"rules": [{"name": "r", "health": "ok"}]}]) == "1 rules in 1 groups"
    with pytest.raises(Failed, match="errors: r"):
        judge_rules([{"rules": [{"name": "r", "health": "err"}]}])
    with pytest.raises(Failed):
        judge_rules([{"rules": []}])


def test_across_hosts() -> None:
    facts = {"h1": {"postgres_role": "primary"}, "h2": {"postgres_role": "replica"}}
    assert checks_report.across_hosts(facts, True) == [Row("postgres", "(all)", "one primary", "pass", "h1")]
    two = {**facts, "h2": {"postgres_role": "primary"}}
    assert checks_report.across_hosts(two, True)[0].result == "fail"
    assert checks_report.across_hosts({"h2": {"vip_holder": False}}, True)[0].evidence == "none"
    assert checks_report.across_hosts(two, False) == [], "a limited run cannot tell"


def test_the_table_is_aligned_and_in_the_order_of_the_tiers() -> None:
    rows = [
        Row("qdrant", "h10", "replicas", "pass", "fine " * 40),
        Row("host", "h1", "answers", "unknown", "unreachable: " + "x" * 120),
    ]
    head, first, second = checks_report.table(rows).splitlines()
    assert head.split() == ["COMPONENT", "HOST", "CHECK", "RESULT", "EVIDENCE"]
    assert first.startswith("host       h1    answers   unknown  unreachable")
    assert first.endswith("x" * 120), "what did not pass is never cut"
    assert head.index("RESULT") == first.index("unknown") == second.index("pass")
    assert len(second) < 160


# --- against real sockets ---


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A CA and a host certificate for 127.0.0.1 as role pki lays them out."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)

    def sign(name: str, issuer: str, key: Any, signer: Any, ca: bool) -> Any:
        import ipaddress

        builder = x509.CertificateBuilder()
        builder = builder.subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        builder = builder.issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=30, minutes=5))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return builder.add_extension(names, False).sign(signer, hashes.SHA256())

    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "host")}
    paths = {"ca": folder / "ca.crt", "cert": folder / "host.crt", "key": folder / "host.key"}
    pem = serialization.Encoding.PEM
    paths["ca"].write_bytes(sign("ca", "ca", keys["ca"], keys["ca"], True).public_bytes(pem))
    paths["cert"].write_bytes(sign("h1", "ca", keys["host"], keys["ca"], False).public_bytes(pem))
    paths["key"].write_bytes(
        keys["host"].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {name: str(path) for name, path in paths.items()}


def server_context(tls: dict[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls["cert"], tls["key"])
    context.load_verify_locations(tls["ca"])
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Service(http.server.BaseHTTPRequestHandler):
    """Answers by a table {(method, path): (status, body)}; remembers what it was asked."""

    table: dict[tuple[str, str], tuple[int, Any]] = {}
    asked: list[tuple[str, str, dict[str, str], Any]] = []

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.asked.append((self.command, self.path, dict(self.headers), body))
        status, content = self.table.get((self.command, self.path), (404, {"error": {"message": "no such thing"}}))
        payload = json.dumps(content(body) if callable(content) else content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *arguments: Any) -> None:
        """The test's output stays readable."""


@contextlib.contextmanager
def service(tls: dict[str, str], table: dict[tuple[str, str], tuple[int, Any]]) -> Iterator[tuple[int, type[Service]]]:
    handler = type("Handler", (Service,), {"table": table, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = server_context(tls).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], handler
    finally:
        server.shutdown()
        server.server_close()


def document_table(**changes: Any) -> dict[tuple[str, str], tuple[int, Any]]:
    path = "/v1/documents/verify-abc123-h1"
    chunk = {"text": "...", "score": 0.9, "document_id": "verify-abc123-h1"}
    return {
        ("GET", "/ready"): (200, {}),
        ("POST", "/v1/documents"): (202, {"version": 1, "durability": "quorum"}),
        ("GET", path): (200, lambda body: {"status": "live"}),
        ("POST", "/v1/context"): (200, {"chunks": [chunk], "degraded": False}),
        ("DELETE", path): (200, {}),
        **changes.get("table", {}),
    }


def test_a_document_is_ingested_found_and_deleted(tls: dict[str, str]) -> None:
    table = document_table()
    states = iter([(200, {"status": "embedded"}), (200, {"status": "live"}), (404, {})])

    class Lively(dict[tuple[str, str], tuple[int, Any]]):
        def get(self, key: Any, default: Any = None) -> Any:
            return next(states) if key == ("GET", "/v1/documents/verify-abc123-h1") else super().get(key, default)

    with service(tls, Lively(table)) as (port, handler):
        recorder = Recorder(plan(tls, ports={"pbml": port}, patience=5.0), "pbml")
        check_pbml(recorder.plan, recorder)
    assert [(row.check, row.result) for row in recorder.rows] == [
        ("ready", "pass"),
        ("document ingested", "pass"),
        ("document live", "pass"),
        ("document found", "pass"),
        ("document deleted", "pass"),
    ], recorder.rows
    assert all(headers.get("Authorization") == "Bearer sk-very-secret" for _, path, headers, _ in handler.asked[1:])


@pytest.mark.parametrize(
    ("table", "check", "evidence"),
    [
        ({("POST", "/v1/documents"): (202, {"version": 1, "durability": "local"})}, "document ingested", "local"),
        ({("POST", "/v1/documents"): (503, {"error": {}})}, "document ingested", "HTTP 503"),
        ({("GET", "/v1/documents/verify-abc123-h1"): (200, {"status": "received"})}, "document live", "is received"),
        ({("POST", "/v1/context"): (200, {"chunks": [], "degraded": False})}, "document found", "not among 0 chunks"),
        ({("GET", "/ready"): (503, {})}, "ready", "HTTP 503"),
    ],
)
def test_a_wrong_answer_of_pbml_fails(
    tls: dict[str, str], table: dict[tuple[str, str], tuple[int, Any]], check: str, evidence: str
) -> None:
    with service(tls, document_table(table=table)) as (port, _):
        recorder = Recorder(plan(tls, ports={"pbml": port}), "pbml")
        check_pbml(recorder.plan, recorder)
    row = next(row for row in recorder.rows if row.check == check)
    assert row.result == "fail"
    assert evidence in row.evidence


def test_a_deleted_document_that_stays_fails(tls: dict[str, str]) -> None:
    with service(tls, document_table()) as (port, _):
        recorder = Recorder(plan(tls, ports={"pbml": port}), "pbml")
        check_pbml(recorder.plan, recorder)
    assert recorder.rows[-1] == Row("pbml", "h1", "document deleted", "fail", "still there: live")


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


def test_the_certificates_days(tls: dict[str, str]) -> None:
    recorder = Recorder(plan(tls), "host")
    check_host(recorder.plan, recorder)
    assert recorder.rows[1] == Row("host", "h1", "certificate", "pass", "30 days left")
    recorder = Recorder(plan(tls, certificate_days=60), "host")
    check_host(recorder.plan, recorder)
    assert recorder.rows[1].result == "fail"


def test_a_component_that_breaks_is_a_row_and_the_others_are_still_asked(
    monkeypatch: pytest.MonkeyPatch, run_module: Callable[..., dict[str, Any]]
) -> None:
    def broken(plan: Plan, record: Recorder) -> None:
        raise RuntimeError("boom")

    def fine(plan: Plan, record: Recorder) -> None:
        record.check("works", lambda: "yes")

    monkeypatch.setattr(checks, "COMPONENTS", {"one": ("all", broken), "two": ("x", fine), "three": ("y", fine)})
    rows, _ = checks.run_all(plan(groups=("x",)))
    assert [(row.component, row.result) for row in rows] == [("one", "unknown"), ("two", "pass")]
    assert "boom" in rows[0].evidence


def test_pgbouncer_is_asked_through_each_entry_and_the_password_is_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    fake = tmp_path / "psql"
    # The read-write entry leads to a replica here, which is wrong.
    fake.write_text(f'#!/bin/sh\necho "$PGDATABASE $PGPASSWORD $*" >> {seen}\ncat > /dev/null\necho "t|10.0.0.2"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    secrets = {"pbml_database_password": "pg-secret"}
    peers = {"postgres": {"h1": "10.0.0.1", "h2": "10.0.0.2"}}
    recorder = Recorder(plan({"ca": "/ca"}, ports={"pgbouncer": 6432}, secrets=secrets, peers=peers), "pgbouncer")
    check_pgbouncer(recorder.plan, recorder)
    assert [(row.check, row.result) for row in recorder.rows] == [
        ("devmentor", "fail"),
        ("devmentor_ro", "pass"),
        ("devmentor_session", "fail"),
    ]
    assert recorder.rows[1].evidence == "select over TLS answered by replica h2"
    assert seen.read_text().splitlines()[0] == "devmentor pg-secret -XAtq"


def test_commands_complain_in_the_evidence() -> None:
    assert run_command(["cat"], stdin="x") == "x"
    result, evidence = outcome(lambda: run_command(["sh", "-c", "echo gone >&2; exit 3"]))
    assert (result, evidence) == ("unknown", "sh exited 3: gone")
    assert outcome(lambda: run_command(["/nonexistent/psql"]))[0] == "unknown"
    with pytest.raises(Failed, match="quorum"):
        run_command(["sh", "-c", "echo 'WARNING: canceling wait for synchronous replication' >&2"])


def test_the_module_returns_rows_and_does_not_fail(run_module: Callable[..., dict[str, Any]]) -> None:
    arguments = {**plan({"ca": "/no", "cert": "/no", "key": "/no"}).__dict__}
    del arguments["secrets"]
    arguments["ports"] = {"node_exporter": 1, "process_exporter": 2}
    result = run_module("platform_check", plan=arguments, secrets={"api_key": "sk-very-secret"})
    assert not result["failed"]
    assert {row["component"] for row in result["rows"]} == {"host", "exporters"}
    assert all(row["host"] == "h1" for row in result["rows"])
    assert {row["result"] for row in result["rows"] if row["component"] == "exporters"} == {"unknown"}
