"""The database tier: replicas as their primary sees them, and PgBouncer's entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from verify_doubles import plan

from module_utils.devmentor.checks_base import Failed, Recorder
from module_utils.devmentor.checks_postgres import check_pgbouncer, judge_replica, judge_synchronous


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
