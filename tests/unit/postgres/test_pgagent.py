"""What the role pgagent tells the agents, and what it repeats of the roles postgres and pgbouncer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from filter_plugins.pgagent import pgagent_cluster, pgagent_priority, zone_priority

ROLES = Path(__file__).resolve().parents[3] / "roles"
GROUPS = {"postgres": ["pg1", "pg2", "pg3", "pg4"], "pgbouncer": ["pg2", "pool1"], "offline": ["pg4"]}
HOSTVARS: dict[str, dict[str, Any]] = {
    "pg1": {"zone": "a", "ansible_host": "10.0.0.1"},
    "pg2": {"zone": "b", "ansible_host": "10.0.0.2"},
    "pg3": {"zone": "c", "ansible_host": "10.0.0.3", "devmentor_address": "192.0.2.3"},
    "pg4": {"devmentor_zone": "a", "zone": "x", "ansible_host": "10.0.0.4"},
    "pool1": {"zone": "a", "ansible_host": "10.0.0.5"},
}


@pytest.mark.parametrize(
    ("zones", "ahead"),
    [
        ("aabc", "a"), ("abcc", "c"), ("aabb", ""), ("abc", ""), ("ab", ""), ("aa", "a"), ("a", "a"), ("aaab", "a"),
    ],
)
def test_the_zone_that_alone_has_most_nodes_leads(zones: str, ahead: str) -> None:
    named = {f"n{index}": zone for index, zone in enumerate(zones)}
    assert {zone for name, zone in named.items() if zone_priority(name, named)} == set(ahead)
    assert {zone_priority(name, named) for name in named} <= {0, 1}
    assert zone_priority("other", named) == 0


def test_nobody_has_a_priority_where_there_is_no_node() -> None:
    assert zone_priority("n1", {}) == 0


def test_the_cluster_names_every_node_and_pooler() -> None:
    cluster = pgagent_cluster(GROUPS, HOSTVARS)
    assert cluster["postgres"] == {
        "pg1": {"address": "10.0.0.1", "priority": 1},
        "pg2": {"address": "10.0.0.2", "priority": 0},
        "pg3": {"address": "192.0.2.3", "priority": 0},
        "pg4": {"address": "10.0.0.4", "priority": 1},
    }
    assert cluster["pgbouncer"] == {"pg2": {"address": "10.0.0.2"}, "pool1": {"address": "10.0.0.5"}}
    assert [pgagent_priority(name, GROUPS, HOSTVARS) for name in ("pg1", "pg2", "pool1")] == [1, 0, 0]


def test_a_priority_of_the_inventory_wins() -> None:
    given = {**HOSTVARS, "pg1": {**HOSTVARS["pg1"], "pgagent_priority": 0}, "pg2": {"pgagent_priority": "7"}}
    nodes = pgagent_cluster(GROUPS, given)["postgres"]
    assert (nodes["pg1"]["priority"], nodes["pg2"]["priority"]) == (0, 7)
    bad = {**HOSTVARS, "pg3": {"pgagent_priority": "high"}}
    with pytest.raises(AnsibleFilterError, match="pg3: pgagent_priority is 'high'"):
        pgagent_cluster(GROUPS, bad)


def load(role: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROLES / role / kind / "main.yml").read_text())
    return found


def test_what_it_repeats_of_other_roles_is_what_they_say() -> None:
    """Their defaults and vars are not there in this role's play."""
    postgres, pgbouncer, own = load("postgres", "defaults"), load("pgbouncer", "defaults"), load("pgagent", "defaults")
    variables = {"devmentor_config_dir": "/etc/devmentor", **postgres, **load("postgres", "vars")}
    variables |= load("pgbouncer", "vars")

    def templated(text: str, given: dict[str, Any]) -> Any:
        return Templar(DataLoader(), variables=given).template(trust_as_template(text))

    trusted = {key: trust_as_template(value) if isinstance(value, str) else value for key, value in variables.items()}
    assert templated(own["pgagent_restore_command"], {}) == postgres["postgres_restore_command"]
    assert own["pgagent_database"] == pgbouncer["pgbouncer_database"] == postgres["postgres_database"]
    for mine, theirs in {
        "postgres_unit": "__postgres_unit",
        "postgres_bin_dir": "__postgres_bin_dir",
        "postgres_data_dir": "__postgres_data_dir",
        "passfile": "__postgres_passfile",
        "targets_file": "__pgbouncer_targets",
    }.items():
        text = load("pgagent", "vars")[f"__pgagent_{mine}"]
        assert templated(text, trusted) == templated(variables[theirs], trusted), mine
    start = load("pgagent", "vars")["__pgagent_postgres_start_timeout"]
    assert int(templated(start, {})) == postgres["postgres_start_timeout"] + 60
