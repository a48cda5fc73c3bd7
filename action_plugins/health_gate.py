"""Gives a health gate the host's plan and secrets, made as verify's are, where its checks need them."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.checks_plan import plan_of_host
from module_utils.devmentor.gate_options import GateError, needs_plan
from module_utils.devmentor.gate_parse import parse_checks


class ActionModule(ActionBase):  # type: ignore[misc]
    """Reads the checks first: bad input ends here, before a host is asked."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, arguments = task_vars or {}, dict(self._task.args)
        secrets = dict(arguments.get("secrets") or {})
        try:
            checks = parse_checks(arguments.get("checks"))
        except GateError as error:
            raise AnsibleActionFail(f"health_gate: {error}") from error
        if needs_plan(checks, secrets, arguments.get("tls") or {}):
            try:
                # Each canary takes a run of its own.
                plan, own = plan_of_host(variables, self._loader, self._templar, run="gate")
            except (KeyError, ValueError) as error:
                raise AnsibleActionFail(
                    f"health_gate: no plan could be made of host {variables.get('inventory_hostname')}: {error}. "
                    "Remedy: run playbooks/preflight.yml, which names what the inventory lacks."
                ) from error
            arguments |= {"plan": plan, "secrets": {**own, **secrets}}
        return {**result, **self._execute_module(module_args=arguments, task_vars=variables)}
