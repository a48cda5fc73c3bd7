"""Notes what a run changes on which host (module_utils/devmentor/run_changes.py); prints nothing."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.plugins.callback import CallbackBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.run_changes import RUN

DOCUMENTATION = r"""
name: run_changes
type: aggregate
short_description: Notes the changes of a run
description:
  - From the first one on, tasks do not rely on what hosts said when their facts were gathered.
  - A rolling update plans from the changes that its roles report in check mode.
  - Without it they ask every host, which is slower and nothing else.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """A failed or unreachable host counts as changed: how far its task came is not known."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "run_changes"
    CALLBACK_NEEDS_ENABLED = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        RUN.watched = True

    def v2_runner_on_ok(self, result: Any) -> None:
        if result._result.get("changed"):
            RUN.note(result._host.get_name(), result._task.get_name())

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        RUN.changed = True

    def v2_runner_on_unreachable(self, result: Any) -> None:
        RUN.changed = True
