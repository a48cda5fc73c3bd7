"""What a host must offer its groups: computed here, compared on the host (hostcheck.py)."""

from __future__ import annotations

from typing import Any

from .platform_model import GROUP_SIZES, Host

# Debian 13 everywhere; hosts of these groups alone may run Debian 12. Releases of our services are for Python 3.13.
DEBIAN_12_GROUPS = frozenset({"spare"})


def expectations(host: Host) -> dict[str, Any]:
    """What the groups of a host ask of the machine, in the form of `host_preflight`'s parameters."""
    groups = [group for group in GROUP_SIZES if group in host.groups]
    values = host.values
    scale = float(values.get("devmentor_resource_scale") or 1.0)
    ports: dict[str, str] = {}
    table = values.get("devmentor_ports") or {}
    for rule in values.get("devmentor_communication_matrix") or []:
        if rule["to"] in groups or rule["to"] == "all":
            ports.update({str(table[name]): name for name in rule["ports"] if name in table and name != "ssh"})
    return {
        "debian": ["12", "13"] if groups and set(groups) <= DEBIAN_12_GROUPS else ["13"],
        "needs": [
            {
                "group": group,
                "cores": round(float(need["cpu_min"]) * scale, 3),
                "memory_gib": round(float(need["memory_min_gib"]) * scale, 3),
            }
            for group, need in (values.get("devmentor_resources") or {}).items()
            if group in groups or (group == "qwen" and "qwen_standby" in groups)
        ],
        "disks": [
            {
                "path": disk["path"],
                "free_gib": float(disk.get("free_gib", 0)),
                "capacity_gib": float(disk.get("capacity_gib", 0)) * scale,
            }
            for disk in values.get("devmentor_disk_minimum") or []
            if not disk.get("groups") or set(disk["groups"]) & set(groups)
        ],
        "ports": ports,
        "units": sorted(
            {
                unit
                for group, footprint in (values.get("devmentor_footprint") or {}).items()
                if group in groups or group == "all"
                for unit in footprint.get("units", [])
            }
        ),
        "vip": str(values.get("devmentor_vip") or "") if "gateway" in groups else "",
    }
