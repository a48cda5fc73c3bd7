"""The database tier: replicas as their primary sees them, and PgBouncer's entries."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from verify_doubles import plan

from module_utils.devmentor import checks_postgres
from module_utils.devmentor.checks_base import Failed, Recorder, Unanswered
from module_utils.devmentor.checks_postgres import (
    check_pgbouncer,
    check_postgres,
    judge_archiver,
    judge_failover,
    judge_replica,
    judge_repository,
    judge_synchronous,
)
from module_utils.devmentor_ha.rules import changed_followers
from module_utils.devmentor_ha.verdict import Verdict, judge
from tests.unit.ha import statuses


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


def state(**changes: Any) -> dict[str, Any]:
    """A primary as it describes itself."""
    return {
        "in_recovery": False,
        "timeline": 1,
        "synchronous": "",
        "archive_mode": "on",
        "pending_restart": [],
        "receiver": None,
        "archived": 7,
        "archive_failures": 0,
        "archive_age": 12,
        "archive_waits": 0,
        "last_archived_wal": "000000010000000000000007",
        "archive_broken": False,
        "last_failed_wal": None,
        **changes,
    }


def stanza(code: int = 0, message: str = "ok", newest: str | None = "000000010000000000000007") -> dict[str, Any]:
    """An entry of `pgbackrest info`."""
    backup = {"type": "full", "error": False, "timestamp": {"stop": time.time() - 3600}}
    return {
        "name": "devmentor",
        "status": {"code": code, "message": message},
        "repo": [{"status": {"code": code, "message": message}}],
        "archive": [{"min": newest, "max": newest}] if code in (0, 2) else [],
        "backup": [backup] if code == 0 else [],
    }


def test_the_archiver_as_its_primary_describes_it() -> None:
    assert judge_archiver(state()) == "7 segments archived, the last 12 s ago"
    assert judge_archiver(state(archive_failures=2)).endswith("12 s ago, 2 failures before")
    for wrong, complaint in (
        ({"archive_mode": "off"}, "archive_mode is off"),
        ({"archive_broken": True, "last_failed_wal": "0A"}, "the last attempt failed: 0A"),
        ({"archived": 0, "archive_age": None}, "nothing was archived"),
        ({"archive_waits": 900}, "a segment has waited for 900 s"),
    ):
        with pytest.raises(Failed, match=complaint):
            judge_archiver(state(**wrong))


def test_the_object_store_has_what_counts_as_archived() -> None:
    assert judge_repository([stanza()], "000000010000000000000007") == "answers, WAL up to 000000010000000000000007"
    assert judge_repository([stanza(2, "no valid backups")], None).startswith("answers")
    assert judge_repository([stanza()], "00000002.history").startswith("answers")
    refused = stanza(99, "[ProtocolError] HTTP request failed with 403 (Forbidden)")
    for stanzas, archived, complaint in (
        ([], None, "no stanza"),
        ([refused], None, "403"),
        ([stanza(1, "missing stanza path")], None, "missing stanza path"),
        ([stanza(newest=None)], None, "no WAL"),
        ([stanza()], "000000010000000000000008", "000000010000000000000008 counts as archived and is not there"),
    ):
        with pytest.raises(Failed, match=complaint):
            judge_repository(stanzas, archived)


def rows_of_postgres(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], info: list[dict[str, Any]]
) -> dict[str, str]:
    """Check -> result of a host whose psql and pgbackrest give these answers; what they were asked is in `asked`."""
    (folder / "state").write_text(json.dumps(answer))
    (folder / "after").write_text(json.dumps({**answer, "archived": 1}))
    (folder / "info").write_text(json.dumps(info))
    psql = 'case "$sql" in *switch_wal*) cp after state;; *stat_archiver*) cat state;; *"where run"*) echo h1;; esac'
    for name, script in (
        ("runuser", 'shift 3; exec "$@"'),
        ("psql", f'cd {folder}; sql=$(cat); echo "$sql" >> asked; {psql}'),
        ("pgbackrest", f"cd {folder}; echo pgbackrest $* >> asked; cat info"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    recorder = Recorder(plan(ports={"postgres": 5432}, peers={"postgres": {"h1": "10.0.0.1"}}), "postgres")
    check_postgres(recorder.plan, recorder)
    return {row.check: row.result for row in recorder.rows}


def test_every_node_asks_the_object_store_and_only_the_primary_looks_for_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of_postgres(tmp_path, monkeypatch, state(), [stanza()])
    assert rows["object store"] == rows["archiving"] == rows["backup"] == "pass"
    assert "pg_switch_wal" not in (tmp_path / "asked").read_text()
    replica = state(in_recovery=True, receiver="streaming", last_archived_wal=None)
    assert rows_of_postgres(tmp_path, monkeypatch, replica, [stanza()])["object store"] == "pass"
    assert "backup" not in rows_of_postgres(tmp_path, monkeypatch, replica, [stanza()])
    assert rows_of_postgres(tmp_path, monkeypatch, replica, [stanza(99, "no route")])["object store"] == "fail"


def test_a_server_that_has_archived_nothing_gets_a_segment_to_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of_postgres(tmp_path, monkeypatch, state(archived=0, last_archived_wal=None), [stanza()])
    assert "pg_switch_wal" in (tmp_path / "asked").read_text()
    assert rows["archiving"] == "pass"


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


def test_failover_works_if_all_agents_agree() -> None:
    def verdict(**changes: Any) -> Verdict:
        return judge(statuses.NODES, statuses.POOLERS, {**statuses.cluster(), **changes})

    assert judge_failover(verdict()).endswith("rule 1.0: pg1 over 2 of pg2, pg3, pg4, 2 poolers follow")
    lagging = statuses.pooler("pool1")
    lagging["pooler"]["leader"] = "pg2"
    with pytest.raises(Failed, match=r"degraded: pool1: PgBouncer follows rule 1\.0"):
        judge_failover(verdict(pool1=lagging))
    paused = statuses.node("pg2")
    paused["paused"] = {"until": statuses.NOW + 60, "reason": "switch"}
    with pytest.raises(Failed, match="degraded: pg2: paused until"):
        judge_failover(verdict(pg2=paused))
    shrunk = changed_followers(statuses.RULE, ["pg2", "pg3"])
    with pytest.raises(Failed, match=r"pg4: is not in rule 1\.1"):
        judge_failover(verdict(**statuses.cluster(shrunk)))
    disagrees = statuses.node("pg2")
    disagrees["committed"] = {**statuses.RULE.as_dict(), "leader": "pg5"}
    with pytest.raises(Unanswered, match=r"pg2: its agent knows another rule 1\.0"):
        judge_failover(verdict(pg2=disagrees))
    with pytest.raises(Failed, match="pg4: no status"):
        judge_failover(judge(statuses.NODES, [], {name: statuses.node(name) for name in statuses.NODES[:3]}))
    with pytest.raises(Unanswered, match="no agent that answers knows a committed rule"):
        judge_failover(judge(statuses.NODES, [], {}))


def test_every_node_asks_the_agents_and_one_without_an_agent_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows_of_postgres(tmp_path, monkeypatch, state(), [stanza()])["failover"] == "unknown"
    asked: list[Any] = []

    def examine(agents: Any, away: set[str]) -> Verdict:
        asked.append((agents, away))
        return judge(statuses.NODES, statuses.POOLERS, statuses.cluster())

    monkeypatch.setattr(checks_postgres, "examine", examine)
    monkeypatch.setattr(checks_postgres.Agents, "of_host", lambda path: path)
    replica = state(in_recovery=True, receiver="streaming", last_archived_wal=None)
    assert rows_of_postgres(tmp_path, monkeypatch, replica, [stanza()])["failover"] == "pass"
    assert asked == [("/etc/devmentor/pgagent/pgagent.env", set())]
