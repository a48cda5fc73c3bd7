"""Copies the artefacts that the module of the same name finds missing on the host, and has the copies verified."""

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
    """A host whose local fact says that all is there and verified is not asked."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = {"artifacts": self._task.args["artifacts"]}
        verified = held(task_vars or {}, "artifacts")
        if all(verified.get(artifact["path"]) == artifact["sha256"].lower() for artifact in arguments["artifacts"]):
            return {**result, "changed": False, "missing": []}
        answer = self._execute_module(module_args=arguments, task_vars=task_vars)
        if answer.get("failed") or not answer["missing"] or self._task.check_mode:
            return {**result, **answer}
        for artifact in arguments["artifacts"]:
            if artifact["path"] not in answer["missing"]:
                continue
            copied = copy(self, artifact["src"], artifact["path"], artifact.get("mode", "0644"), task_vars)
            if copied.get("failed"):
                return {**result, **copied}
        return {**result, **self._execute_module(module_args={**arguments, "copied": True}, task_vars=task_vars)}
