"""Molecule's scenarios share their hosts: what one starts, its cleanup.yml stops."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SCENARIOS = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/converge.yml"))


def plays(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text()) if path.exists() else []
    return found


def applied(scenario: str) -> set[str]:
    """The roles that prepare.yml and converge.yml apply."""
    entries = [
        entry
        for name in ("prepare", "converge")
        for play in plays(ROOT / "molecule" / scenario / f"{name}.yml")
        for entry in play.get("roles", [])
    ]
    return {entry if isinstance(entry, str) else entry["role"] for entry in entries}


def stopped(cleanup: Path, imports: bool) -> set[str]:
    """The units that a cleanup.yml stops by service_units, with or without what other scenarios' do for it."""
    units: list[dict[str, Any]] = []
    names: set[str] = set()
    for play in plays(cleanup):
        units += play.get("vars", {}).get("stop_units", [])
        for task in play.get("tasks", []):
            units += task.get("service_units", {}).get("units", [])
        target = play.get("ansible.builtin.import_playbook")
        if imports and target and target != "../stop_units.yml":
            names |= stopped(cleanup.parent / target, imports)
    return names | {unit["name"] for unit in units}


def own_units(role: str) -> set[str]:
    return stopped(ROOT / "molecule" / role / "cleanup.yml", imports=False)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_a_scenario_starts_it_stops(scenario: str) -> None:
    left = {unit for role in applied(scenario) for unit in own_units(role)}
    assert left <= stopped(ROOT / "molecule" / scenario / "cleanup.yml", imports=True)


@pytest.mark.parametrize("role", [name for name in SCENARIOS if (ROOT / "roles" / name / "tasks/service.yml").exists()])
def test_the_scenario_of_a_role_that_runs_services_cleans_up(role: str) -> None:
    if re.search(r"service_units", (ROOT / "roles" / role / "tasks/service.yml").read_text()):
        assert (ROOT / "molecule" / role / "cleanup.yml").exists()
