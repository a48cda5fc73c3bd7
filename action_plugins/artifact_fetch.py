"""Has artefacts in the control node's cache; options and results are described in library/artifact_fetch.py.

In this process: a module on localhost would be packed, sent and compiled anew to find, as nearly always, that
all is there.
"""

from __future__ import annotations

import pathlib
import sys
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.artifacts import ArtifactError, select_artifacts
from module_utils.devmentor.artifacts_cache import Fetched, Fetcher

PROGRESS_EVERY_S = 5.0


class Progress:
    """Says how far a download is, every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, label: str, done: int, total: int) -> None:
        if time.monotonic() - self._said >= PROGRESS_EVERY_S:
            self._said = time.monotonic()
            of = f" of {total / 1e6:.0f}" if total else ""
            Display().display(f"{label}: {done / 1e6:.0f}{of} MB")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Contacts no host; in check mode nothing is fetched, and what would be is named by its first source."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            argument_spec={
                "artifacts": {"type": "dict", "required": True},
                "names": {"type": "list", "elements": "str"},
                "cache_dir": {"type": "path", "required": True},
            }
        )
        fetcher = Fetcher(pathlib.Path(options["cache_dir"]).resolve(), Progress())
        try:
            selected = select_artifacts(options["artifacts"], options["names"])
            if self._task.check_mode:
                fetched = [
                    Fetched(item, fetcher.path(item), "" if fetcher.cached(item) else str(item.sources[0]))
                    for item in selected
                ]
            else:
                fetched = [fetcher.fetch(item) for item in selected]
        except (ArtifactError, OSError) as error:
            raise AnsibleActionFail(str(error)) from error
        return {
            **result,
            "changed": any(item.changed for item in fetched),
            "artifacts": {
                item.artifact.name: {
                    "path": str(item.path),
                    "file": item.artifact.file,
                    "mode": item.artifact.mode,
                    "version": item.artifact.version,
                    "sha256": item.artifact.sha256,
                    "release": item.artifact.release,
                    "source": item.source,
                }
                for item in fetched
            },
        }
