"""Copies the archives that the module of the same name finds missing on the host, and has them installed."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.controller_copy import copy
from module_utils.devmentor.local_facts import held


class ActionModule(ActionBase):  # type: ignore[misc]
    """A host whose local fact says that the release runs is not asked."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        archives = arguments.pop("archives", "")
        app, release = arguments["app"], arguments["id"]
        if held(task_vars or {}, "releases").get(app) == release:
            return {**result, "changed": False, "id": release, "missing": [], "actions": []}
        answer = self._execute_module(module_args=arguments, task_vars=task_vars)
        if answer.get("failed") or not answer["missing"] or not archives or self._task.check_mode:
            return {**result, **answer}
        incoming = f"{arguments.get('directory', '/opt/devmentor')}/.store/incoming/"  # the slash has it made
        for name in answer["missing"]:
            copied = copy(self, str(pathlib.Path(archives) / name), incoming, "0644", task_vars)
            if copied.get("failed"):
                return {**result, **copied}
        return {**result, **self._execute_module(module_args=arguments, task_vars=task_vars)}
