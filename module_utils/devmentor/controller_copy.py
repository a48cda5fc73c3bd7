"""Copies a file of the control node to the host of an action plugin."""

from __future__ import annotations

from typing import Any


def copy(action: Any, src: str, dest: str, mode: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
    """Has ansible.builtin.copy do it (by a temporary file and a rename) on behalf of `action`, an ActionBase.

    Returns its result; on failure the message begins with `dest`.
    """
    task = action._task.copy()
    task.args = {"src": src, "dest": dest, "mode": mode}
    plugin = action._shared_loader_obj.action_loader.get(
        "ansible.legacy.copy",
        task=task,
        connection=action._connection,
        play_context=action._play_context,
        loader=action._loader,
        templar=action._templar,
        shared_loader_obj=action._shared_loader_obj,
    )
    copied: dict[str, Any] = plugin.run(task_vars=task_vars)
    if copied.get("failed"):
        copied["msg"] = f"{dest}: {copied.get('msg')}"
    return copied
