"""What a host must offer its groups: computed here, compared on the host (hostcheck.py)."""

from __future__ import annotations

import collections.abc as c
from typing import Any

from .platform_model import GROUP_SIZES, STANDBY, Host

# Debian 13 everywhere; hosts of these groups alone may run Debian 12: the others need packages that only Debian 13 has.
DEBIAN_12_GROUPS = frozenset({"qwen", "qwen_standby", "vllm", "spare"})


# sshd's port is not the roles' to bind.
FOREIGN_PORTS = frozenset({"ssh"})


def listeners(values: c.Mapping[str, Any], groups: c.Collection[str]) -> dict[str, str]:
    """Port ("6333/tcp") -> its name, for all that the roles bind on a host of these groups.

    The communication matrix has the ports that others may reach, `llamacpp_instances` the engines on loopback.
    """
    table = values.get("devmentor_ports") or {}
    found = {
        f"{table[name]}/{protocol}": name
        for rule in values.get("devmentor_communication_matrix") or []
        if rule["to"] in groups or rule["to"] == "all"
        for name in rule["ports"]
        if name in table and name not in FOREIGN_PORTS
        for protocol in rule.get("protocols", ["tcp"])
    }
    for name, engine in (values.get("llamacpp_instances") or {}).items():
        if isinstance(engine, c.Mapping) and "port" in engine and set(engine.get("groups", ())) & set(groups):
            found[f"{engine['port']}/tcp"] = f"llamacpp_{name}"
            if engine.get("surge_port"):
                found[f"{engine['surge_port']}/tcp"] = f"llamacpp_{name}_surge"
    if "vllm" in groups and "vllm" in table:
        found[f"{table['vllm']}/tcp"] = "vllm"
    return found


def gpu_needs(values: c.Mapping[str, Any], groups: c.Collection[str]) -> dict[str, Any] | None:
    """What vLLM asks of the host's GPUs; None where it does not run on any."""
    if "vllm" not in groups or values.get("vllm_device", "cuda") != "cuda":
        return None
    return {
        "cuda": str(values.get("vllm_cuda") or ""),
        "ecc": bool(values.get("vllm_require_ecc", True)),
        "accepted_xids": [int(code) for code in values.get("vllm_accepted_xids") or []],
    }


def expectations(host: Host) -> dict[str, Any]:
    """What the groups of a host ask of the machine, in the form of `host_preflight`'s parameters."""
    groups = [group for group in GROUP_SIZES if group in host.groups]
    values = host.values
    scale = float(values.get("devmentor_resource_scale") or 1.0)
    served = {*groups, *(group for group, standby in STANDBY.items() if standby in groups)}
    return {
        "debian": ["12", "13"] if groups and set(groups) <= DEBIAN_12_GROUPS else ["13"],
        "needs": [
            {
                "group": group,
                "cores": round(float(need["cpu_min"]) * scale, 3),
                "memory_gib": round(float(need["memory_min_gib"]) * scale, 3),
            }
            for group, need in (values.get("devmentor_resources") or {}).items()
            if group in served
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
        "ports": listeners(values, served),
        "units": sorted(
            {
                unit
                for group, footprint in (values.get("devmentor_footprint") or {}).items()
                if group in groups or group == "all"
                for unit in footprint.get("units", [])
            }
        ),
        "gpu": gpu_needs(values, groups),
        "vip": str(values.get("devmentor_vip") or "") if "gateway" in groups else "",
    }
