"""The run of all tiers: a component that breaks spoils no other, and the module gives rows, never a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from verify_doubles import plan

from module_utils.devmentor import checks
from module_utils.devmentor.checks_base import Plan, Recorder


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


def test_the_module_returns_rows_and_does_not_fail(run_module: Callable[..., dict[str, Any]]) -> None:
    arguments = {**plan({"ca": "/no", "cert": "/no", "key": "/no"}).__dict__}
    del arguments["secrets"]
    arguments["ports"] = {"node_exporter": 1, "process_exporter": 2}
    result = run_module("platform_check", plan=arguments, secrets={"api_key": "sk-very-secret"})
    assert not result["failed"]
    assert {row["component"] for row in result["rows"]} == {"host", "exporters"}
    assert all(row["host"] == "h1" for row in result["rows"])
    assert {row["result"] for row in result["rows"] if row["component"] == "exporters"} == {"unknown"}
