"""What has changed on which host in this run of ansible-playbook, as far as this process was told.

The callback plugin `run_changes` tells it in Ansible's main process; a task's action plugin is forked from that and
sees what was known when its task began. What a host said of itself when its facts were gathered is good until then.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class RunChanges:
    """watched: the callback plugin is at work. changed: a task has reported a change since the run began. tasks: host
    -> names of the tasks that reported one, in order; a rolling update plans from those of its roles in check mode."""

    watched: bool = False
    changed: bool = False
    tasks: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def none_yet(self) -> bool:
        """True when it is known that nothing has changed."""
        return self.watched and not self.changed

    def note(self, host: str, task: str) -> None:
        """A task has reported a change on a host."""
        self.changed = True
        self.tasks.setdefault(host, []).append(task)


RUN = RunChanges()
