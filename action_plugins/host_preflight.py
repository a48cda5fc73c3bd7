"""Part two of preflight on one host. A host that cannot be asked is a finding as well, so that all come out at once."""

from __future__ import annotations

import pathlib
import sys
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor import hostcheck


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module of the same name; the clock is compared here, where both readings are known."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        before = time.time()
        try:
            asked = {**self._task.args["expect"], "rollout_lock": self._task.args.get("rollout_lock", True)}
            answer = self._execute_module(module_args=asked, task_vars=variables)
        except AnsibleConnectionFailure as error:
            return {**result, "findings": [_unreachable(variables, str(error))]}
        if answer.get("failed") or "findings" not in answer:
            return {**result, "findings": [_cannot_run(answer)]}
        clock = hostcheck.check_clock(answer["time"], before, time.time())
        return {**result, **answer, "findings": answer["findings"] + [_as_dict(finding) for finding in clock]}


def _unreachable(task_vars: dict[str, Any], reason: str) -> dict[str, str]:
    last = [line.strip() for line in reason.splitlines() if line.strip()]
    return _as_dict(
        hostcheck.Finding(
            "ansible_host",
            f"is not reachable by SSH ({last[-1].rstrip('.') if last else 'no reason given'})",
            "start the host or correct its address and SSH access, or leave it out with "
            f"--limit 'all:!{task_vars['inventory_hostname']}'",
        )
    )


def _cannot_run(answer: dict[str, Any]) -> dict[str, str]:
    text = str(answer.get("module_stderr") or answer.get("module_stdout") or answer.get("msg") or "no output")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if answer.get("rc") == 127:
        finding = hostcheck.Finding("python3", f"cannot be run ({lines[-1]})", "apt-get install python3 on the host")
        return _as_dict(finding)
    return _as_dict(
        hostcheck.Finding(
            "host_preflight",
            f"did not run ({str(answer.get('msg') or '').rstrip('.')}: {lines[-1].rstrip('.')})",
            "check the user, sudo rights and Python of the host",
        )
    )


def _as_dict(finding: hostcheck.Finding) -> dict[str, str]:
    return {"what": finding.what, "problem": finding.problem, "remedy": finding.remedy}
