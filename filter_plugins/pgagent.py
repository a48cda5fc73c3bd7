"""The failover agents' view of the cluster, from the inventory. Pure functions, tested in tests/unit/postgres."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# Filters run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from filter_plugins.devmentor import host_address


def zone_priority(name: str, zones: Mapping[str, str]) -> int:
    """1 for a node of the zone that alone has most nodes, 0 for all others. `zones`: node -> zone."""
    ranked = Counter(zones.values()).most_common(2)
    ahead = len(ranked) == 1 or (bool(ranked) and ranked[0][1] > ranked[1][1])
    return int(ahead and zones.get(name) == ranked[0][0])


def _zones(groups: Mapping[str, Sequence[str]], hostvars: Any) -> dict[str, str]:
    return {
        name: str(hostvars[name].get("devmentor_zone") or hostvars[name].get("zone") or "zone-a")
        for name in groups.get("postgres", [])
    }


def pgagent_priority(name: str, groups: Mapping[str, Sequence[str]], hostvars: Any) -> int:
    """The priority of a host for which the inventory sets none."""
    return zone_priority(name, _zones(groups, hostvars))


def pgagent_cluster(groups: Mapping[str, Sequence[str]], hostvars: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """The content of cluster.json (docs/postgres-ha-protocol.md), hosts of the group offline included: a rule may name
    them. Raises AnsibleFilterError for a priority that is no whole number."""
    zones = _zones(groups, hostvars)
    nodes: dict[str, dict[str, Any]] = {}
    for name in zones:
        given = hostvars[name].get("pgagent_priority")
        try:
            priority = zone_priority(name, zones) if given is None else int(given)
        except (TypeError, ValueError) as error:
            raise AnsibleFilterError(
                f"{name}: pgagent_priority is {given!r}, not a whole number. Give it one, or remove it."
            ) from error
        nodes[name] = {"address": host_address(name, hostvars), "priority": priority}
    poolers = {name: {"address": host_address(name, hostvars)} for name in groups.get("pgbouncer", [])}
    return {"postgres": nodes, "pgbouncer": poolers}


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"pgagent_priority": pgagent_priority, "pgagent_cluster": pgagent_cluster}
