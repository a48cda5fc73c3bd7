"""Prints lines as they are; `debug` would quote them and break them at the terminal's width."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display


class ActionModule(ActionBase):  # type: ignore[misc]
    """`lines`: what to print."""

    _requires_connection = False
    _VALID_ARGS = frozenset({"lines"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        for line in self._task.args["lines"]:
            Display().display(str(line))
        return {**result, "changed": False}
