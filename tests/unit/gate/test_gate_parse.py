"""Bad input is refused with check, option and remedy, before anything is probed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from module_utils.devmentor.gate_options import TYPES, GateError, Timing, needs_plan
from module_utils.devmentor.gate_parse import parse_checks
from module_utils.devmentor.gate_run import FUNCTIONS

HTTP = {"name": "front", "type": "http", "url": "http://127.0.0.1:1/"}
SQL = {"name": "rows", "type": "sql", "query": "select 1"}


@pytest.mark.parametrize(
    ("checks", "wanted"),
    [
        ([], ["checks", "at least one"]),
        ("x", ["checks", "at least one"]),
        ([{"type": "tcp"}], ["check 1", "name"]),
        ([{**HTTP, "type": "htp"}], ["'front'", "type", "http, tcp"]),
        ([{**HTTP, "type": ["http"]}], ["'front'", "type", "http, tcp"]),
        ([{**HTTP, "timeout_seconds": "nan"}], ["'front'", "timeout_seconds", "a number"]),
        ([{"name": "p", "type": "tcp", "host": "h", "port": float("inf")}], ["'p'", "port", "whole number"]),
        ([HTTP, HTTP], ["'front'", "name", "twice"]),
        ([{**HTTP, "urll": "x"}], ["'front'", "urll", "no option", "url, status"]),
        ([{"name": "front", "type": "http"}], ["'front'", "url", "missing"]),
        ([{**HTTP, "url": "ftp://x/"}], ["'front'", "url", "ftp", "http://HOST"]),
        ([{**HTTP, "url": "http://x:99999/"}], ["'front'", "url", "http://HOST"]),
        ([{**HTTP, "status": "ok"}], ["'front'", "status", "whole numbers"]),
        ([{**HTTP, "headers": ["a"]}], ["'front'", "headers", "mapping"]),
        ([{**HTTP, "headers": {"authorization": "x"}}], ["'front'", "headers", "headers_from"]),
        ([{**HTTP, "timeout_seconds": 0}], ["'front'", "timeout_seconds", "more than 0"]),
        ([{"name": "p", "type": "tcp", "host": "h", "port": 70000}], ["'p'", "port", "65535"]),
        ([{"name": "p", "type": "tcp", "host": "h", "port": "five"}], ["'p'", "port", "whole number"]),
        ([SQL], ["'rows'", "expect", "exactly one"]),
        ([{**SQL, "expect": "1", "expect_regex": "1"}], ["'rows'", "expect", "exactly one"]),
        ([{**SQL, "expect_regex": "("}], ["'rows'", "expect_regex", "regular expression"]),
        ([{**SQL, "expect": "1", "query": "\\! touch /tmp/x"}], ["'rows'", "query", "backslash"]),
        ([{"name": "m", "type": "promql", "url": "http://h:1", "query": "up", "op": "lt"}], ["'m'", "value"]),
        (
            [{"name": "m", "type": "promql", "url": "http://h:1", "query": "up", "op": "empty", "value": 1}],
            ["'m'", "value"],
        ),
        ([{"name": "m", "type": "promql", "url": "http://h:1", "query": "up", "op": "<"}], ["'m'", "op", "lt, le"]),
        ([{"name": "u", "type": "systemd", "unit": "x", "active": "perhaps"}], ["'u'", "active", "true or false"]),
        ([{"name": "q", "type": "qdrant", "url": "http://h:1", "expected_peers": 0}], ["'q'", "expected_peers"]),
        ([{"name": "d", "type": "postgres", "role": "leader"}], ["'d'", "role", "primary, replica"]),
        ([{"name": "c", "type": "canary", "of": "mysql"}], ["'c'", "of", "qwen"]),
        ([{"name": "c", "type": "canary", "of": "postgres", "base": "https://h:1"}], ["'c'", "base"]),
    ],
)
def test_bad_checks_are_refused_by_name(checks: Any, wanted: list[str]) -> None:
    with pytest.raises(GateError) as error:
        parse_checks(checks)
    message = str(error.value)
    assert "Remedy: " in message
    assert all(part in message for part in wanted), message


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    with pytest.raises(GateError) as error:
        parse_checks([{**HTTP, "url": "http://me:geheim@127.0.0.1:1/"}])
    assert "bearer_from" in str(error.value)
    assert "geheim" not in str(error.value)


def test_texts_from_templates_become_what_the_option_is() -> None:
    [check] = parse_checks([{**HTTP, "status": "204", "timeout_seconds": "2"}])
    assert (check.options["status"], check.timeout_seconds) == ([204], 2.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("period_seconds", 0),
        ("timeout_seconds", -1),
        ("success_threshold", 0),
        ("failure_threshold", -1),
        ("deadline_seconds", 0),
        ("deadline_seconds", float("nan")),
        ("deadline_seconds", float("inf")),
        ("initial_delay_seconds", -1),
    ],
)
def test_bad_timing_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(GateError, match=f"{option}.*Remedy"):
        Timing(**{option: value})


def test_a_delay_as_long_as_the_deadline_is_refused() -> None:
    with pytest.raises(GateError, match=r"deadline_seconds.*initial_delay"):
        Timing(initial_delay_seconds=10, deadline_seconds=10)


def test_every_type_has_its_function() -> None:
    assert set(FUNCTIONS) | {"canary"} == set(TYPES)


@pytest.mark.parametrize(
    ("check", "needs"),
    [
        (HTTP, False),
        ({**HTTP, "url": "https://127.0.0.1:1/"}, True),
        ({**HTTP, "bearer_from": "given"}, False),
        ({**HTTP, "bearer_from": "other"}, True),
        ({**HTTP, "headers_from": {"api-key": "other"}}, True),
        ({**SQL, "expect": "1"}, False),
        ({**SQL, "expect": "1", "host": "h"}, True),
        ({**SQL, "expect": "1", "host": "h", "sslmode": "disable"}, False),
        ({"name": "c", "type": "canary", "of": "qwen"}, True),
    ],
)
def test_the_plan_is_made_only_where_it_is_needed(check: dict[str, Any], needs: bool) -> None:
    assert needs_plan(parse_checks([check]), {"given": "x"}, {}) is needs


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({"checks": [{**HTTP, "bearer_from": "nobody"}]}, ["'front'", "'nobody'", "secrets", "Remedy"]),
        ({"checks": [{"name": "c", "type": "canary", "of": "qwen"}]}, ["'c'", "of", "plan", "Remedy"]),
        ({"checks": [HTTP], "period_seconds": 0}, ["period_seconds", "Remedy"]),
        ({"checks": [{**HTTP, "statis": 1}]}, ["'front'", "statis", "Remedy"]),
    ],
)
def test_the_module_probes_nothing_after_bad_input(
    run_module: Callable[..., dict[str, Any]], parameters: dict[str, Any], wanted: list[str]
) -> None:
    result = run_module("health_gate", **parameters)
    assert result["failed"]
    assert "rounds" not in result
    assert all(part in result["msg"] for part in wanted), result["msg"]
