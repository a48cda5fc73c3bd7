"""Has the services' wheelhouse on the control node; options and results are described in library/wheelhouse.py.

In this process, as artifact_fetch is.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.wheelhouse import WheelhouseError, build, built, describe, find


class ActionModule(ActionBase):  # type: ignore[misc]
    """Contacts no host; in check mode nothing is downloaded or built."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            argument_spec={
                "services": {"type": "path", "required": True},
                "directory": {"type": "path", "required": True},
                "id": {"type": "str", "default": ""},
            }
        )
        services, directory = pathlib.Path(options["services"]), pathlib.Path(options["directory"]).resolve()
        try:
            if options["id"]:
                release, changed = find(options["id"], directory), False
            elif self._task.check_mode:
                release = describe(services, directory)
                changed = not built(release)
            else:
                directory.mkdir(parents=True, exist_ok=True)
                release, changed = build(services, directory, Display().display)
        except (WheelhouseError, OSError) as error:
            raise AnsibleActionFail(str(error)) from error
        return {
            **result,
            "changed": changed,
            "id": release.id,
            "version": release.version,
            "python": release.python,
            "deps": release.deps,
            "directory": str(directory),
        }
