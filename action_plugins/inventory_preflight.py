"""Part one of preflight: everything that inventory and variables alone can tell. Contacts no host."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor import inventory_view
from module_utils.devmentor.platform_model import Platform
from module_utils.devmentor.preflight import inspect
from module_utils.devmentor.preflight_expectations import expectations
from module_utils.devmentor.preflight_problems import merge, render

ROOT = pathlib.Path(__file__).resolve().parents[1]


class ActionModule(ActionBase):  # type: ignore[misc]
    """Fails with every problem at once; on success returns what each host is expected to offer."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        platform = self.platform(variables)
        problems = inspect(platform)
        if problems:
            raise AnsibleActionFail(
                f"{len(merge(problems))} problem(s) in {platform.inventory}, nothing was contacted or "
                f"changed:\n{render(problems, list(platform.hosts))}"
            )
        return {
            **result,
            "changed": False,
            "hosts": len(platform.hosts),
            "expectations": {name: expectations(host) for name, host in platform.hosts.items()},
        }

    def platform(self, task_vars: dict[str, Any]) -> Platform:
        def load(path: str) -> Any:
            return self._loader.load_from_file(path, cache="all", trusted_as_template=True)

        def template(values: Any, value: Any) -> Any:
            return self._templar.copy_with_new_env(available_variables=values).template(value)

        hostvars = task_vars["hostvars"]
        return inventory_view.platform_view(
            {str(name): hostvars.raw_get(name) for name in task_vars["groups"]["all"]},
            {str(group): [str(host) for host in hosts] for group, hosts in task_vars["groups"].items()},
            inventory_view.load_roles(ROOT / "roles", load),
            {name: task_vars[name] for name in ("groups", "hostvars") if name in task_vars},
            template,
            inventory_name(task_vars),
        )


def inventory_name(task_vars: dict[str, Any]) -> str:
    """The inventory as an operator would type it."""
    sources = task_vars.get("ansible_inventory_sources") or [task_vars.get("inventory_dir") or "inventories/lab"]
    source = pathlib.Path(str(sources[0]))
    name = os.path.relpath(source.parent if source.is_file() else source)
    return name if not name.startswith("..") else str(source)
