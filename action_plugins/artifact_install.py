"""Copies the artefacts that the module of the same name finds missing on the host, and has the copies verified."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """ansible.builtin.copy does the transfer: by a temporary file and a rename."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = {"artifacts": self._task.args["artifacts"]}
        answer = self._execute_module(module_args=arguments, task_vars=task_vars)
        if answer.get("failed") or not answer["missing"] or self._task.check_mode:
            return {**result, **answer}
        for artifact in arguments["artifacts"]:
            if artifact["path"] not in answer["missing"]:
                continue
            copied = self.copy(artifact, task_vars)
            if copied.get("failed"):
                return {**result, **copied, "msg": f"{artifact['path']}: {copied.get('msg')}"}
        return {**result, **self._execute_module(module_args={**arguments, "copied": True}, task_vars=task_vars)}

    def copy(self, artifact: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        task = self._task.copy()
        task.args = {"src": artifact["src"], "dest": artifact["path"], "mode": artifact.get("mode", "0644")}
        action = self._shared_loader_obj.action_loader.get(
            "ansible.legacy.copy",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        copied: dict[str, Any] = action.run(task_vars=task_vars)
        return copied
