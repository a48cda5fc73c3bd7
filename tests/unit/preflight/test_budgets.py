"""What preflight says about token budgets."""

from typing import Any

import pytest
from test_inventory import lines, only, platform

KEYS = {"lab": "key-of-lab"}


def budgets(given: Any, **more: Any) -> Any:
    values = {"qwen_api_keys": KEYS, "qwen_database_hosts": ["10.0.0.2"], "qwen_token_budgets": given, **more}
    spec = {"type": "dict", "description": "x"}
    specs = {"qwen": {name: {**spec, "type": "list" if name.endswith("hosts") else "dict"} for name in values}}
    return platform(specs=specs, per_host=dict.fromkeys(("h1", "h2", "h3"), values))


@pytest.mark.parametrize("given", [{}, {"lab": {"tokens_per_minute": 1}}, {"lab": {"tokens_per_day": "600"}}])
def test_budgets_that_hold(given: Any) -> None:
    assert lines(budgets(given)) == []


def test_budgets_without_poolers() -> None:
    found = only(budgets({"lab": {"tokens_per_day": 9}}, qwen_database_hosts=[]))
    assert found.startswith("h1,h2,h3: qwen_database_hosts: is empty, and qwen_token_budgets are counted in")
    assert lines(budgets({}, qwen_database_hosts=[])) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"lob": {"tokens_per_day": 9}}, "budgets.lob: is a budget of a tenant that has no key (did you mean lab?)"),
        ({"lab": {"tokens_per_hour": 9}}, "budgets.lab: has not exactly tokens_per_minute and/or tokens_per_day"),
        ({"lab": {}}, "qwen_token_budgets.lab: has not exactly"),
        ({"lab": 5}, "qwen_token_budgets.lab: has not exactly"),
        ({"lab": {"tokens_per_day": 0}}, "qwen_token_budgets.lab.tokens_per_day: 0 is not a positive number of tokens"),
        ({"lab": {"tokens_per_day": "many"}}, "qwen_token_budgets.lab.tokens_per_day: 'many' is not a positive number"),
    ],
)
def test_budgets_that_do_not(given: Any, problem: str) -> None:
    found = only(budgets(given))
    assert problem in found
    assert "key-of-lab" not in found
