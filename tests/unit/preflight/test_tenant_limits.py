"""What preflight says about quotas and retention."""

from typing import Any

import pytest
from test_inventory import lines, only, platform

from devmentor.pbml.tenant_limits import DEFAULT, Quota, Retention
from module_utils.devmentor import preflight_tenants

KEYS = {"lab": "key-of-lab"}


def limits(**given: Any) -> Any:
    values = {"pbml_tenants": KEYS, **given}
    specs = {"pbml": {name: {"type": "dict", "description": "x"} for name in values}}
    return platform(specs=specs, per_host=dict.fromkeys(("h2", "h3", "h4"), values))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"pbml_quotas": {}, "pbml_retention": {}},
        {"pbml_quotas": {"lab": {"bytes": 1}, "default": {"documents": "600", "turns": 5}}},
        {"pbml_retention": {"lab": {}, "default": {"documents_days": 1, "turns_days": 36500}}},
    ],
)
def test_limits_that_hold(given: Any) -> None:
    assert lines(limits(**given)) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"pbml_quotas": {"lob": {"bytes": 9}}}, "pbml_quotas.lob: is of a tenant that has no key (did you mean lab?)"),
        ({"pbml_quotas": {"lab": {"mib": 9}}}, "pbml_quotas.lab: has something else than bytes, documents, turns"),
        ({"pbml_quotas": {"lab": 9}}, "pbml_quotas.lab: has something else than"),
        ({"pbml_quotas": {"lab": {"bytes": 0}}}, "pbml_quotas.lab.bytes: 0 is not a number of bytes from 1 to"),
        ({"pbml_quotas": {"lab": {"bytes": "10 GiB"}}}, "pbml_quotas.lab.bytes: '10 GiB' is not a number of bytes"),
        ({"pbml_quotas": {"lab": {"bytes": True}}}, "pbml_quotas.lab.bytes: True is not a number of bytes"),
        ({"pbml_quotas": {"lab": {"bytes": None}}}, "pbml_quotas.lab.bytes: None is not a number of bytes"),
        ({"pbml_quotas": {"lab": {"bytes": "²"}}}, "pbml_quotas.lab.bytes: '²' is not a number of bytes"),
        ({"pbml_retention": {"lab": {"days": 9}}}, "pbml_retention.lab: has something else than documents_days"),
        ({"pbml_retention": {"lab": {"turns_days": -1}}}, "lab.turns_days: -1 is not a number of days from 1 to 36500"),
        ({"pbml_retention": {"lab": {"turns_days": 1.5}}}, "lab.turns_days: 1.5 is not a number of days"),
        ({"pbml_retention": {"lab": {"turns_days": 40000}}}, "40000 is not a number of days from 1 to 36500"),
    ],
)
def test_limits_that_do_not(given: Any, problem: str) -> None:
    found = only(limits(**given))
    assert problem in found
    assert found.startswith("h2,h3,h4: ")
    assert "Remedy: " in found
    assert "key-of-lab" not in found


def test_the_service_knows_the_same_limits() -> None:
    for model, what in ((Quota, "pbml_quotas"), (Retention, "pbml_retention")):
        assert list(model.model_fields) == list(preflight_tenants.FIELDS[what])
    assert preflight_tenants.DEFAULT == DEFAULT
