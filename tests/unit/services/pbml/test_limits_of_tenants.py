"""Quotas and retention as the role writes them for the service."""

import json
from pathlib import Path

import pytest
from jinja2 import Environment

from devmentor.common.settings import load
from devmentor.pbml import tenant_limits
from devmentor.pbml.settings import Settings
from devmentor.pbml.tenant_limits import Quota, Retention

TEMPLATE = Path(__file__).parents[4] / "roles/pbml/templates/pbml.env.j2"


def written(tmp_path: Path, **given) -> Settings:
    """What the service reads of the lines that the role's template has for both variables."""
    lines = TEMPLATE.read_text()
    lines = lines[lines.index("{% if pbml_quotas %}") : lines.index("PBML_BYTES_PER_TOKEN")]
    environment = Environment()
    environment.filters["to_json"] = json.dumps  # Ansible's filter
    path = tmp_path / "pbml.env"
    path.write_text(environment.from_string(lines).render({"pbml_quotas": {}, "pbml_retention": {}, **given}))
    return load(Settings, path)


def test_what_the_role_writes_the_service_reads(tmp_path):
    given = written(
        tmp_path,
        pbml_quotas={"lab": {"bytes": 10, "documents": "5"}, "default": {"turns": 3}},
        pbml_retention={"default": {"documents_days": 30}, "lab": {}},
    )
    assert given.quotas == {"lab": Quota(bytes=10, documents=5), "default": Quota(turns=3)}
    assert given.retention == {"default": Retention(documents_days=30), "lab": Retention()}
    assert tenant_limits.limits(tenant_limits.of(given.quotas, "lab")) == {"bytes": 10, "documents": 5}
    assert tenant_limits.limits(tenant_limits.of(given.quotas, "another")) == {"turns": 3}
    assert tenant_limits.limits(tenant_limits.of(given.retention, "lab")) == {}


def test_without_limits_there_are_none(tmp_path):
    given = written(tmp_path)
    assert (given.quotas, given.retention) == ({}, {})
    assert tenant_limits.limits(tenant_limits.of(given.quotas, "lab")) == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "PBML_QUOTAS: Value error, not JSON"),
        ("[]", "PBML_QUOTAS: Input should be a valid dictionary"),
        ('{"lab": {"bytes": 0}}', "PBML_QUOTAS_LAB_BYTES: Input should be greater than or equal to 1"),
        ('{"lab": {"bytes": "many"}}', "PBML_QUOTAS_LAB_BYTES: "),
        ('{"lab": {"mib": 1}}', "PBML_QUOTAS_LAB_MIB: Extra inputs are not permitted"),
        ('{"a b": {"bytes": 1}}', "PBML_QUOTAS_A B_[KEY]: String should match pattern"),
    ],
)
def test_a_wrong_one_ends_the_service_and_is_named(tmp_path, capsys, value, said):
    path = tmp_path / "pbml.env"
    path.write_text(f"PBML_QUOTAS='{value}'\n")
    with pytest.raises(SystemExit, match="2"):
        load(Settings, path)
    assert capsys.readouterr().err.startswith(said)
