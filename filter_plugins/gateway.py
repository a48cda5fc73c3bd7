"""What the gateway's files need beyond templating. Pure functions, tested in tests/unit/gateway."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


def tenant_map(api_keys: Mapping[str, str], admin_key: str) -> str:
    """HAProxy's map from the sha256 of an API key (lower-case hex) to its tenant; the administrator's is `admin`.

    Two tenants with one key are refused: their budgets and caches would be each other's.
    """
    lines: dict[str, str] = {}
    for tenant, key in [*sorted(api_keys.items()), ("admin", admin_key)]:
        digest = hashlib.sha256(key.encode()).hexdigest()
        if digest in lines:
            raise ValueError(f"tenants {lines[digest]} and {tenant} have the same API key. Give each its own.")
        lines[digest] = tenant
    return "".join(f"{digest} {tenant}\n" for digest, tenant in lines.items())


def interface_of(facts: Mapping[str, Any], address: str) -> str:
    """The network interface that holds `address`, from a host's facts."""
    for name in facts.get("interfaces", []):
        device = facts.get(str(name).replace("-", "_"), {})
        first = device.get("ipv4") or {}
        entries = [*([first] if first else []), *device.get("ipv4_secondaries", []), *device.get("ipv6", [])]
        if any(entry.get("address") == address for entry in entries):
            return str(device.get("device", name))
    raise ValueError(f"no interface of the host holds {address} (devmentor_address). Set gateway_vip_interface.")


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"tenant_map": tenant_map, "interface_of": interface_of}
