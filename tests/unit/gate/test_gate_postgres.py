"""sql, postgres and the canary's commit against a real primary and its replica."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from gate_doubles import free_port, told
from gate_postgres import OWNER, Server, pair

from module_utils.devmentor.checks_base import Failed, Recorder, Unanswered
from module_utils.devmentor.checks_postgres import check_commit
from module_utils.devmentor.gate_cluster import judge_receiver
from tests.unit.verify.verify_doubles import plan


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Server, Server]]:
    with pair() as both:
        yield both


@pytest.fixture
def primary(nodes: tuple[Server, Server]) -> Server:
    return nodes[0]


@pytest.fixture
def replica(nodes: tuple[Server, Server]) -> Server:
    return nodes[1]


def query(server: Server, text: str, **more: Any) -> dict[str, Any]:
    return {"type": "sql", "host": "127.0.0.1", "port": server.port, "query": text, "sslmode": "disable", **more}


def node(monkeypatch: pytest.MonkeyPatch, server: Server, role: str, **more: Any) -> tuple[str, str]:
    monkeypatch.setenv("PGHOST", str(server.folder))
    return told({"type": "postgres", "role": role, "port": server.port, **more})


def test_the_first_field_must_be_as_expected(primary: Server) -> None:
    text = "select 'a|b', 2 union all select 'z', 3 order by 1"
    assert told(query(primary, text, expect="a|b")) == ("pass", "answered 'a|b'")
    assert told(query(primary, text, expect="a")) == ("fail", "answered 'a|b', wanted 'a'")
    assert told(query(primary, text, expect_regex="^a.b$"))[0] == "pass"
    assert told(query(primary, text, expect_regex="^z")) == ("fail", "answered 'a|b', wanted a match of ^z")
    assert told(query(primary, "select true", expect="t"))[0] == "pass"
    assert told(query(primary, "select 1 where false", expect="1"))[0] == "fail"


def test_a_query_that_fails_hangs_or_finds_nobody_is_unknown(primary: Server) -> None:
    result, evidence = told(query(primary, "select 1/0", expect="1"))
    assert result == "unknown"
    assert "division by zero" in evidence
    began = time.monotonic()
    assert told(query(primary, "select pg_sleep(30)", expect=""), limit=1.0)[0] == "unknown"
    assert time.monotonic() - began < 5
    assert told({**query(primary, "select 1", expect="1"), "port": free_port()})[0] == "unknown"
    assert told(query(primary, "select 1", expect="1", sslmode="verify-full"))[0] == "unknown"


def test_a_query_can_change_nothing_unless_that_is_asked(primary: Server) -> None:
    primary.sql("create table kept (n int)")
    write = "insert into kept values (1) returning n"
    result, evidence = told(query(primary, write, expect="1"))
    assert result == "unknown"
    assert "read-only transaction" in evidence
    assert told(query(primary, write, expect="1", read_only=False))[0] == "pass"
    assert primary.sql("select count(*) from kept") == "1"


def test_the_password_comes_from_the_secrets_and_stays_secret(primary: Server) -> None:
    primary.sql("create role locked login password 'pw-geheim'; grant pg_read_all_settings to locked")
    hba = primary.folder / "data" / "pg_hba.conf"
    kept = hba.read_text()
    hba.write_text("host postgres locked 127.0.0.1/32 scram-sha-256\n" + kept)
    primary.sql("select pg_reload_conf()")
    try:
        check = query(primary, "select 'pw-geheim'", expect="other", user="locked", password_from="db")
        until = time.monotonic() + 5
        while told(check, secrets={"db": "wrong"})[0] != "unknown" and time.monotonic() < until:
            time.sleep(0.1)
        assert told(check, secrets={"db": "pw-geheim"}) == ("fail", "answered '***', wanted 'other'")
        result, evidence = told(check, secrets={"db": "wrong"})
        assert result == "unknown"
        assert "authentication failed" in evidence
    finally:
        hba.write_text(kept)
        primary.sql("select pg_reload_conf()")


def test_over_the_local_socket_as_the_user(primary: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", str(primary.folder))
    check = {"type": "sql", "port": primary.port, "query": "select current_user", "expect": OWNER}
    assert told(check)[0] == "pass"


def test_a_node_in_its_role(primary: Server, replica: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node(monkeypatch, primary, "replica") == ("fail", "is primary, wanted replica")
    assert node(monkeypatch, replica, "primary") == ("fail", "is replica, wanted primary")
    assert node(monkeypatch, primary, "primary", replicas=["127.0.0.1"]) == ("pass", "primary, 1 replicas streaming")
    result, evidence = node(monkeypatch, primary, "primary", replicas=["127.0.0.1", "10.9.9.9"])
    assert (result, evidence) == ("fail", "primary, replica 10.9.9.9: does not stream from the primary")
    result, evidence = node(monkeypatch, replica, "replica")
    assert result == "pass"
    assert evidence.startswith("replica, streaming, lag ")


def test_a_replica_that_lags_or_does_not_stream_fails(
    primary: Server, replica: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.sql("select pg_wal_replay_pause()")
    try:
        primary.sql("create table lagging as select repeat('x', 100) as x from generate_series(1, 5000)")
        until = time.monotonic() + 20
        while node(monkeypatch, replica, "replica", max_lag_bytes=1000)[0] != "fail" and time.monotonic() < until:
            time.sleep(0.2)
        result, evidence = node(monkeypatch, replica, "replica", max_lag_bytes=1000)
        assert result == "fail"
        assert "1000 are the limit" in evidence
        assert node(monkeypatch, replica, "replica", max_lag_bytes=1 << 30)[0] == "pass"
        assert node(monkeypatch, primary, "primary", replicas=["127.0.0.1"], max_lag_bytes=1000)[0] == "fail"
    finally:
        replica.sql("select pg_wal_replay_resume()")
    kept = replica.sql("show primary_conninfo").replace("'", "''")
    replica.sql("alter system set primary_conninfo = 'host=127.0.0.1 port=1'")
    replica.sql("select pg_reload_conf()")
    try:
        until = time.monotonic() + 20
        while node(monkeypatch, replica, "replica")[0] != "fail" and time.monotonic() < until:
            time.sleep(0.2)
        assert node(monkeypatch, replica, "replica") == ("fail", "replica whose WAL receiver is not running")
        assert node(monkeypatch, replica, "replica", streaming=False) == ("pass", "replica")
        # The commit is made on a primary that is not there.
        assert commit(monkeypatch, replica)[0] == "unknown"
    finally:
        replica.sql(f"alter system set primary_conninfo = '{kept}'")
        replica.sql("select pg_reload_conf()")


def test_nobody_there_is_unknown(replica: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", str(replica.folder))
    assert told({"type": "postgres", "role": "replica", "port": free_port()})[0] == "unknown"


def test_a_receiver_that_heard_nothing_does_not_know_its_lag() -> None:
    state = {"receiver": "streaming", "silence": 1.0, "lag_bytes": 5}
    assert judge_receiver(state, 10) == "replica, streaming, lag 5 B"
    for change in ({"silence": 100.0}, {"silence": None}, {"lag_bytes": None}):
        with pytest.raises(Unanswered, match="not known"):
            judge_receiver({**state, **change}, 10)
    with pytest.raises(Failed):
        judge_receiver({**state, "lag_bytes": 11}, 10)


def commit(monkeypatch: pytest.MonkeyPatch, server: Server, patience: float = 5.0) -> tuple[str, str]:
    monkeypatch.setenv("PGHOST", str(server.folder))
    recorder = Recorder(plan(ports={"postgres": server.port}, patience=patience), "postgres")
    check_commit(recorder.plan, recorder)
    [row] = recorder.rows
    return row.result, row.evidence


def test_a_commit_made_on_the_primary_arrives_on_the_replica(
    primary: Server, replica: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = time.monotonic() + 20
    while node(monkeypatch, replica, "replica")[0] != "pass" and time.monotonic() < until:
        time.sleep(0.2)
    before = primary.sql("select pg_current_wal_lsn()")
    result, evidence = commit(monkeypatch, replica)
    assert result == "pass", evidence
    assert "replayed here in" in evidence
    assert primary.sql(f"select pg_current_wal_lsn() > '{before}'") == "t"
    assert commit(monkeypatch, primary) == ("pass", "this is the primary; it wrote the row")
    replica.sql("select pg_wal_replay_pause()")
    try:
        result, evidence = commit(monkeypatch, replica, patience=0.5)
        assert result == "fail"
        assert "has not arrived" in evidence
    finally:
        replica.sql("select pg_wal_replay_resume()")
