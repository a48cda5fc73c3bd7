"""Filters that keep Jinja out of tasks."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError


def host_address(name: str, hostvars: Any) -> str:
    """The address other hosts reach `name` at: its devmentor_address, else ansible_host, else the name itself."""
    try:
        variables = hostvars[name]
    except KeyError as error:
        raise AnsibleFilterError(f"host_address: {name} is not in the inventory.") from error
    return str(variables.get("devmentor_address") or variables.get("ansible_host") or name)


def host_addresses(names: list[str], hostvars: Any) -> list[str]:
    """`host_address` of each name, in the same order."""
    return [host_address(name, hostvars) for name in names]


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"host_address": host_address, "host_addresses": host_addresses}
