"""The phases of a run in the terminal, and after it a report as HTML and JSON (docs/reports.md)."""

from __future__ import annotations

import atexit
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback import CallbackBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.run_report import Answer, RunRecord
from module_utils.devmentor.run_report_files import write
from module_utils.devmentor.run_report_table import phase_line, slowest, step_line, table
from module_utils.devmentor.run_report_text import Redactor, clip, secrets_of

DOCUMENTATION = r"""
name: phases
type: aggregate
short_description: A table of a run's phases, and a report of it
description:
  - Prints a line when a play, or a host's turn in a rolling update, has ended, and a table of them at the end.
  - Writes a report of the run as HTML and JSON without secrets, arguments of modules or text of playbooks.
options:
  report_dir:
    description: Where reports are written. Empty is C(.cache/reports) of the checkout.
    # Not `path`: that would make the directory of the run of an empty one.
    type: str
    default: ''
    env: [{name: DEVMENTOR_REPORT_DIR}]
    ini: [{section: callback_phases, key: report_dir}]
  report_keep:
    description: How many runs' reports are kept there.
    type: int
    default: 30
    env: [{name: DEVMENTOR_REPORT_KEEP}]
    ini: [{section: callback_phases, key: report_keep}]
"""

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
# Of the extra variables, those that say what an operator asked for. Others may be secret.
_TOLD = ("tier", "version", "host", "target")


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "phases"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._record: RunRecord | None = None
        self._play: Any = None
        self._process = os.getpid()
        atexit.register(self._interrupted)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._record = RunRecord(pathlib.Path(str(playbook._file_name)).name, _options())

    # Ansible calls it before it announces the next play, so the line stands below the play that it is about.
    def set_play_context(self, play_context: Any) -> None:
        self._end_phase()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if self._record:
            self._play = play
            self._record.begin_phase(play.get_name())
            extra = play.get_variable_manager().extra_vars
            self._record.options.update({name: clip(extra[name], 80) for name in _TOLD if extra.get(name)})

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        if self._record:
            self._record.begin_task(task._uuid, task.get_name())

    def v2_playbook_on_cleanup_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._answer("included" if isinstance(result._task, TaskInclude) else "ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._answer("failed", result, ignored=ignore_errors, rescued=not ignore_errors and _rescued(result._task))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._answer("unreachable", result, ignored=bool(result._task.ignore_unreachable))

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._answer("skipped", result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._record:
            self._record.included(host.get_name() for host in included_file._hosts)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if not self._record:
            return
        record, self._record = self._record, None
        record.end_phase()
        self._display.banner("PHASES")
        self._print(table(record))
        slow = slowest(record.slowest())
        if slow:
            self._print(["", "slowest tasks", *slow])
        self._print([""])
        self._write(record, "failed" if record.failed() else "finished")

    def _answer(self, outcome: str, result: Any, ignored: bool = False, rescued: bool = False) -> None:
        if not self._record:
            return
        task = result._task
        step = self._record.answer(
            Answer(
                host=result._host.get_name(),
                task_id=task._uuid,
                outcome=outcome,
                module=str(task.action).rpartition(".")[2],
                result=result._result,
                ignored=ignored,
                rescued=rescued,
            )
        )
        if step:
            self._display.display(step_line(step), color=_color("failed" in step.phases))

    def _end_phase(self) -> None:
        phase = self._record.end_phase() if self._record else None
        if phase and phase.hosts:
            tally = phase.tally()
            self._display.display("\n" + phase_line(phase), color=_color(tally["failed"] + tally["unreachable"] > 0))

    def _print(self, lines: Iterable[str]) -> None:
        self._display.display("\n".join(lines))

    def _write(self, record: RunRecord, state: str) -> None:
        """A report that cannot be written is said, and is no reason to fail a run. Unknown secrets are in none."""
        directory = pathlib.Path(self.get_option("report_dir") or CHECKOUT / ".cache" / "reports").expanduser()
        try:
            path = write(self._redactor().all(record.document(state)), directory, int(self.get_option("report_keep")))
        except OSError as error:
            self._display.display(
                f"No report of this run: {directory} cannot be written ({error.strerror or error}). "
                "Remedy: set DEVMENTOR_REPORT_DIR to a directory that can.",
                color=constants.COLOR_WARN,
            )
        except AnsibleError as error:
            self._display.display(
                f"No report of this run: the secrets to keep out of it cannot be read ({error.message.rstrip('.')}).",
                color=constants.COLOR_WARN,
            )
        else:
            self._display.display(f"Report: {path} (and .json)")

    def _redactor(self) -> Redactor:
        """Knows the secrets of every host that the last play could see."""
        secrets: set[str] = set()
        if self._play is not None:
            manager = self._play.get_variable_manager()
            for host in manager._inventory.get_hosts():
                secrets |= secrets_of(manager.get_vars(play=self._play, host=host, include_hostvars=False))
        return Redactor(secrets)

    def _interrupted(self) -> None:
        """A run that is ended without its recap still has a report. Workers are forks of this process."""
        if self._record and os.getpid() == self._process:
            record, self._record = self._record, None
            record.end_phase()
            self._write(record, "interrupted")


def _color(bad: bool) -> str:
    """Without a terminal Ansible's display leaves colours out."""
    return str(constants.COLOR_ERROR if bad else constants.COLOR_HIGHLIGHT)


def _options() -> dict[str, Any]:
    """Of the command line, what decides on where and how far a run goes; nothing that was not given."""
    given = context.CLIARGS
    tags = [str(tag) for tag in given.get("tags") or () if tag != "all"]
    found = {
        "inventory": [pathlib.Path(str(source)).name or str(source) for source in given.get("inventory") or ()],
        "tags": tags,
        "skip_tags": [str(tag) for tag in given.get("skip_tags") or ()],
        "limit": str(given.get("subset") or ""),
        "start_at_task": str(given.get("start_at_task") or ""),
        "check": bool(given.get("check")),
        "diff": bool(given.get("diff")),
    }
    return {name: value for name, value in found.items() if value}


def _rescued(task: Any) -> bool:
    """Whether a failure of the task goes to the rescue of a block around it."""
    child, parent = task, task._parent
    while parent is not None:
        rescue = getattr(parent, "rescue", None)
        if rescue and child._uuid not in {entry._uuid for entry in [*rescue, *parent.always]}:
            return True
        child, parent = parent, getattr(parent, "_parent", None)
    return False
