"""Preflight judges variables by the roles' argument specs: a default without a spec would be refused as unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from module_utils.devmentor import inventory_view

ROLES = Path(__file__).resolve().parents[3] / "roles"


@pytest.mark.parametrize("role", sorted(path.parent.name for path in ROLES.glob("*/defaults")))
def test_every_default_has_its_spec_and_no_spec_is_left_over(role: str) -> None:
    roles = inventory_view.load_roles(ROLES, lambda path: yaml.safe_load(Path(path).read_text()))
    single = ROLES / role / "defaults" / "main.yml"
    files = [single] if single.is_file() else sorted((ROLES / role / "defaults" / "main").glob("*.yml"))
    defaults = {name for path in files for name in yaml.safe_load(path.read_text()) or {}}
    specs = roles.specs[role]
    assert sorted(defaults - set(specs)) == [], "defaults without a spec"
    required = {name for name, spec in specs.items() if spec.get("required")}
    assert sorted(set(specs) - defaults - required) == [], "specs without a default that are not required"
    assert all(spec.get("description") and spec.get("type") for spec in specs.values())
