"""Reads variables of an inventory as Ansible sees them: templated and, with the vault's password at hand, decrypted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.cli import CLI
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible.vars.manager import VariableManager


class InventoryError(Exception):
    """The inventory cannot answer; the message says which, what and the remedy."""


class Inventory:
    """One inventory folder, such as inventories/lab."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise InventoryError(f"{path}: there is no such inventory.")
        self.path = path
        self._loader = DataLoader()
        password = Path(os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE", path / ".vault-password"))
        if password.exists():
            # The loader decrypts whole files; the process-wide context is for inline values, of which there are none.
            vault_ids = [f"default@{password}"]
            secrets = CLI.setup_vault_secrets(self._loader, vault_ids=vault_ids, initialize_context=False)
            self._loader.set_vault_secrets(secrets)
        self._manager = InventoryManager(loader=self._loader, sources=[str(path)])
        self._variables = VariableManager(loader=self._loader, inventory=self._manager)

    def hosts(self, group: str) -> list[str]:
        """Names of the hosts in a group, in inventory order; empty where there is no such group."""
        return [str(host.name) for host in self._manager.get_hosts(group)] if group in self.groups() else []

    def groups(self) -> set[str]:
        return set(self._manager.groups)

    def secrets(self, host: str) -> dict[str, Any]:
        """Every variable of the vault (vault_*) that a host sees."""
        known = self._manager.get_host(host)
        variables = self._variables.get_vars(host=known)
        return {str(name): value for name, value in variables.items() if name.startswith("vault_")}

    def value(self, host: str, name: str) -> Any:
        """The value of a variable (or Jinja expression) for a host.

        Raises InventoryError where it is undefined.
        """
        known = self._manager.get_host(host)
        if known is None:
            raise InventoryError(f"{self.path}: no host {host}.")
        templar = Templar(loader=self._loader, variables=self._variables.get_vars(host=known))
        try:
            return templar.template(trust_as_template("{{ " + name + " }}"))
        except Exception as error:
            raise InventoryError(
                f"{self.path}: {name} of {host} cannot be read ({error}). "
                "For a lab, run `make lab-up secrets` first; secrets need the inventory's .vault-password."
            ) from error
