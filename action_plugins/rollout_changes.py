"""Which tasks have reported a change on this host so far; see the module's documentation."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.run_changes import RUN


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs on the control node alone."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset({"since"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if not RUN.watched:
            raise AnsibleActionFail(
                "The callback plugin run_changes is not at work, so nobody knows what would change. "
                "Remedy: run from the checkout, whose ansible.cfg names it."
            )
        tasks = RUN.tasks.get((task_vars or {})["inventory_hostname"], [])
        since = int(self._task.args.get("since", 0))
        return {**result, "changed": False, "count": len(tasks), "tasks": list(dict.fromkeys(tasks[since:]))}
