"""Writes an inventory with literal connection variables, for tools that read but do not template them (testinfra)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from tools.inventory_vars import Inventory, InventoryError

CONNECTION = ("ansible_host", "ansible_user", "ansible_ssh_private_key_file", "ansible_ssh_common_args")


def flatten(source: Path) -> str:
    """The text of hosts.yml: every host with its connection variables, every group with its hosts."""
    inventory = Inventory(source)
    names = inventory.hosts("all")
    hosts = {host: {name: str(inventory.value(host, name)) for name in CONNECTION} for host in names}
    groups = sorted(inventory.groups() - {"all", "ungrouped"})
    children: dict[str, Any] = {group: {"hosts": {host: {} for host in inventory.hosts(group)}} for group in groups}
    return yaml.safe_dump({"all": {"hosts": hosts, "children": children}}, sort_keys=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="flat_inventory", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    try:
        text = flatten(arguments.source)
    except InventoryError as error:
        print(f"flat_inventory: {error}", file=sys.stderr)
        return 1
    arguments.target.mkdir(parents=True, exist_ok=True)
    variables = arguments.target / "group_vars"
    variables.unlink(missing_ok=True)
    variables.symlink_to((arguments.source / "group_vars").resolve())
    file = arguments.target / "hosts.yml"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
