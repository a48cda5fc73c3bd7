"""Gives a host the plan of its checks, and turns a host that cannot be asked into a row of the table."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor import checks_base
from module_utils.devmentor.checks_plan import plan_of_host


class ActionModule(ActionBase):  # type: ignore[misc]
    """Never fails and is never unreachable: any_errors_fatal would keep the other hosts from being asked."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        try:
            plan, secrets = plan_of_host(
                variables,
                self._loader,
                self._templar,
                run=str(self._task.args["run"]),
                patience=float(self._task.args.get("patience", 30)),
                certificate_days=int(self._task.args.get("certificate_days", 14)),
            )
        except (KeyError, ValueError) as error:
            return self.unknown(result, variables, f"no plan could be made: {error}")
        try:
            answer = self._execute_module(module_args={"plan": plan, "secrets": secrets}, task_vars=variables)
        except AnsibleConnectionFailure as error:
            return self.unknown(result, variables, f"unreachable: {_last_line(str(error))}")
        if answer.get("failed") or "rows" not in answer:
            reason = answer.get("module_stderr") or answer.get("module_stdout") or answer.get("msg") or "no output"
            return self.unknown(result, variables, f"the checks did not run: {_last_line(str(reason))}")
        return {**result, **answer}

    def unknown(self, result: dict[str, Any], task_vars: dict[str, Any], reason: str) -> dict[str, Any]:
        host = str(task_vars["inventory_hostname"])
        row = {"component": "host", "host": host, "check": "answers", "result": checks_base.UNKNOWN, "evidence": reason}
        return {**result, "changed": False, "rows": [row], "facts": {}}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
