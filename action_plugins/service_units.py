"""Lets the hosts of a service_units task act one after the other, without making those wait that have nothing to do.

`throttle: 1` on the task would have every host wait for every other on every run, and would go on to the next host
after one has failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
from typing import Any, TextIO

from ansible import constants as C
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """The turn is a lock on a file of this run, which holds the names of hosts that failed.

    Hosts that look, or start what is down, share it. A host that interrupts something has it alone, so after them, and
    finds their failures in it.
    """

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        if not boolean(arguments.get("one_at_a_time", False)) or self._task.check_mode:
            return {**result, **self._execute_module(module_args=arguments, task_vars=variables)}
        turn = pathlib.Path(C.DEFAULT_LOCAL_TMP) / f"turn-{self._task._uuid}"
        with turn.open("a+", encoding="utf-8") as handle:
            # Shared while a host looks and starts what is down: who would interrupt something waits for those. Nobody
            # waits in order to look.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            report = self.attempt(handle, {**arguments, "report_only": True}, variables)
            if report.get("failed") or not report["pending"]:
                return {**result, **report}
            fcntl.flock(handle, fcntl.LOCK_EX if report["interrupts"] else fcntl.LOCK_SH)
            handle.seek(0)
            if report["interrupts"] and (failed := handle.read().split()):
                return {
                    **result,
                    "failed": True,
                    "msg": f"left as it is, because {failed[0]} failed before it and one host goes at a time. "
                    f"Mend {failed[0]} and run again. Still to do here: {'; '.join(report['pending'])}",
                }
            return {**result, **self.attempt(handle, arguments, variables)}

    def attempt(self, handle: TextIO, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Runs the module; writes the host's name where that fails, or the host is lost meanwhile."""
        answer: dict[str, Any] = {"failed": True}
        try:
            answer = self._execute_module(module_args=arguments, task_vars=task_vars)
        finally:
            if answer.get("failed"):
                handle.write(f"{task_vars['inventory_hostname']}\n")
                handle.flush()
        return answer
