"""The end of preflight: all findings of all hosts in one message."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.preflight_problems import Problem, merge, render


class ActionModule(ActionBase):  # type: ignore[misc]
    """Fails with one line per finding."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        answers: dict[str, dict[str, Any]] = self._task.args["answers"]
        problems = [
            Problem((host,), finding["what"], finding["problem"], finding["remedy"])
            for host, answer in answers.items()
            for finding in answer.get("findings", [_NOT_ASKED])
        ]
        if problems:
            raise AnsibleActionFail(
                f"{len(merge(problems))} problem(s) on the hosts, nothing was changed:\n"
                + render(problems, list(answers))
            )
        return {**result, "changed": False, "msg": f"{len(answers)} hosts are ready"}


_NOT_ASKED = {
    "what": "preflight",
    "problem": "the host gave no answer",
    "remedy": "run with -vvv to see why",
}
