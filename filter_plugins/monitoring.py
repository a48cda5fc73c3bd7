"""Filters that turn the inventory into Prometheus targets; the logic is in module_utils/devmentor/monitoring.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# Filters run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from module_utils.devmentor.monitoring import (
    Host,
    MonitoringError,
    endpoint,
    exporter_files,
    exporter_units,
    mesh_arguments,
    probe_targets,
    rule_files,
    scrape_targets,
    target_files,
    webhook_secret_files,
)


def _hosts(groups: dict[str, list[str]], hostvars: Any) -> dict[str, Host]:
    hosts = {}
    for name in groups["all"]:
        variables = hostvars[name]
        address = variables.get("devmentor_address") or variables.get("ansible_host") or name
        zone = variables.get("devmentor_zone") or variables.get("zone") or "zone-a"
        hosts[name] = Host(name, str(address), str(zone))
    return hosts


def monitoring_targets(
    jobs: list[dict[str, Any]], groups: dict[str, list[str]], hostvars: Any, ports: dict[str, int]
) -> dict[str, list[dict[str, Any]]]:
    """`scrape_targets` for the running play's inventory."""
    try:
        return scrape_targets(jobs, groups, _hosts(groups, hostvars), ports)
    except MonitoringError as error:
        raise AnsibleFilterError(f"monitoring_targets: {error}") from error


def monitoring_probes(
    probes: list[dict[str, Any]], groups: dict[str, list[str]], hostvars: Any, ports: dict[str, int]
) -> list[dict[str, Any]]:
    """`probe_targets` for the running play's inventory."""
    try:
        return probe_targets(probes, groups, _hosts(groups, hostvars), ports)
    except MonitoringError as error:
        raise AnsibleFilterError(f"monitoring_probes: {error}") from error


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "monitoring_targets": monitoring_targets,
            "monitoring_probes": monitoring_probes,
            "monitoring_target_files": target_files,
            "rule_files": rule_files,
            "exporter_files": exporter_files,
            "exporter_units": exporter_units,
            "endpoint": endpoint,
            "mesh_arguments": mesh_arguments,
            "webhook_secret_files": webhook_secret_files,
        }
