"""The module as Ansible runs it: it passes, fails, only reports, and asks once in check mode; secrets do not appear."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from gate_doubles import free_port, serving

from tests.unit.verify.verify_doubles import service

Run = Callable[..., dict[str, Any]]
FAST = {"period_seconds": 0.1, "timeout_seconds": 30, "deadline_seconds": 90}


def closed(**more: Any) -> dict[str, Any]:
    check = {"name": "door", "type": "tcp", "host": "127.0.0.1", "port": free_port()}
    return {"checks": [check], **FAST, **more}


def test_it_opens_when_a_service_comes_up_meanwhile(run_module: Run) -> None:
    began = time.monotonic()
    with serving(lambda request, body: (200 if time.monotonic() - began > 1 else 503, b"")) as url:
        check = {"name": "front", "type": "http", "url": url}
        result = run_module("health_gate", checks=[check], failure_threshold=0, success_threshold=2, **FAST)
    assert not result["failed"]
    assert result["passed"]
    assert not result["changed"]
    assert [(entry["name"], entry["result"]) for entry in result["timeline"]] == [("front", "fail"), ("front", "pass")]
    assert result["timeline"][1]["at"] > 0
    assert [(row["name"], row["type"], row["result"]) for row in result["checks"]] == [("front", "http", "pass")]
    assert result["waited_s"] >= result["timeline"][1]["at"]


def test_it_fails_with_what_was_seen_and_the_remedy(run_module: Run) -> None:
    result = run_module("health_gate", **closed())
    assert result["failed"]
    assert result["passed"] is False
    assert "check 'door' (tcp): fail: connection refused" in result["msg"]
    assert "Remedy: " in result["msg"]


def test_it_only_reports_when_asked_to(run_module: Run) -> None:
    result = run_module("health_gate", **closed(report_only=True))
    assert not result["failed"]
    assert result["passed"] is False
    assert result["rounds"] == 3


def test_in_check_mode_it_asks_once(run_module: Run) -> None:
    began = time.monotonic()
    result = run_module("health_gate", check=True, **closed(initial_delay_seconds=15, failure_threshold=0))
    assert time.monotonic() - began < 5
    assert result["failed"]
    assert result["rounds"] == 1


def test_a_check_that_cannot_be_read_keeps_it_closed(run_module: Run) -> None:
    check = {"name": "metric", "type": "promql", "query": "up", "op": "eq", "value": 1}
    with serving(
        lambda request, body: (200, b'{"status":"success","data":{"resultType":"vector","result":[]}}')
    ) as url:
        result = run_module("health_gate", checks=[{**check, "url": url}], **FAST)
    assert result["failed"]
    assert "check 'metric' (promql): unknown: the query has no samples" in result["msg"]


def test_secrets_appear_nowhere_in_the_result(run_module: Run) -> None:
    with serving(lambda request, body: (500, request.headers["Authorization"].encode())) as url:
        check = {"name": "front", "type": "http", "url": url, "bearer_from": "key"}
        result = run_module("health_gate", checks=[check], secrets={"key": "sk-geheim"}, **FAST)
    assert result["failed"]
    assert "sk-geheim" not in json.dumps(result)
    assert "Bearer ***" in result["msg"]


@pytest.mark.parametrize("own", [True, False])
def test_tls_comes_from_the_task_or_from_the_plan(run_module: Run, tls: dict[str, str], own: bool) -> None:
    plan = {"host": "h1", "address": "", "groups": [], "peers": {}, "ports": {}, "tls": tls, "run": "gate"}
    given = {"tls": tls} if own else {"plan": plan}
    with service(tls, {("GET", "/ready"): (200, {})}) as (port, _):
        check = {"name": "front", "type": "http", "url": f"https://127.0.0.1:{port}/ready"}
        assert run_module("health_gate", checks=[check], **given, **FAST)["passed"]
        assert not run_module("health_gate", checks=[check], report_only=True, **FAST)["passed"]
