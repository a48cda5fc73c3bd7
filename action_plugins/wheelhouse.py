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

from module_utils.devmentor.wheelhouse import (
    Release,
    WheelhouseError,
    build,
    build_locked,
    built,
    describe,
    describe_locked,
    find,
)


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
                "pythons": {"type": "list", "elements": "str", "default": ["3.13"]},
                "locks": {"type": "dict", "default": {}},
                "package": {"type": "str", "default": ""},
                "label": {"type": "str", "default": ""},
            }
        )
        directory = pathlib.Path(options["directory"]).resolve()
        try:
            if options["id"]:
                had = [(find(options["id"], directory), False)]
            else:
                had = [self._have(options, directory, python) for python in options["pythons"]]
        except (WheelhouseError, OSError) as error:
            raise AnsibleActionFail(str(error)) from error
        releases = {
            release.python: {
                "id": release.id,
                "version": release.version,
                "python": release.python,
                "deps": release.deps,
                "directory": str(directory),
            }
            for release, _ in had
        }
        first = next(iter(releases.values()))
        return {**result, "changed": any(changed for _, changed in had), **first, "releases": releases}

    def _have(self, options: dict[str, Any], directory: pathlib.Path, python: str) -> tuple[Release, bool]:
        """The release for one version of Python, and whether it was (in check mode: would be) built."""
        services = pathlib.Path(options["services"])
        say = Display().display
        if options["locks"] and python not in options["locks"]:
            known = ", ".join(sorted(options["locks"]))
            raise WheelhouseError(f"{options['package']} has no lock for Python {python}, only for {known}.")
        if not self._task.check_mode:
            directory.mkdir(parents=True, exist_ok=True)
        if options["locks"]:
            pinned = pathlib.Path(options["locks"][python]), options["package"], python, services, directory
            if not self._task.check_mode:
                return build_locked(*pinned, say)
            release = describe_locked(*pinned)
        elif not self._task.check_mode:
            return build(services, directory, say, python, options["label"])
        else:
            release = describe(services, directory, python, options["label"])
        return release, not built(release)
