"""What one run of a playbook did, from its own events: phases, tasks, hosts, steps of a roll, gates, failures.

The callback plugin `phases` tells a RunRecord what happens; `document` is the report (schema in docs/reports.md).
Knows nothing of Ansible, keeps no result: what it may keep of one is in run_report_events.py.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .run_report_events import Entry, censored, entries
from .run_report_text import clip, message

SCHEMA = "devmentor-run-report"
VERSION = 1
SLOWEST = 10
MOST_FAILURES = 200
MOST_ENTRIES = 1000

# Phases of the journal after which a host's turn is over.
_ENDS = ("done", "went_back")
_HIDDEN_MESSAGE = "(hidden by no_log)"


@dataclass
class Counts:
    """As in Ansible's recap: changed ones are ok too, a failure that was rescued or ignored is not failed."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0

    def result(self) -> str:
        """What became of the host: unreachable, failed, changed, ok, or nothing where no task ran."""
        for name in ("unreachable", "failed", "changed", "ok"):
            if getattr(self, name):
                return name
        return "nothing"


def tally(hosts: Mapping[str, Counts]) -> dict[str, int]:
    """Hosts by what became of them; each host counts once."""
    results = [counts.result() for counts in hosts.values()]
    return {name: results.count(name) for name in ("ok", "changed", "failed", "unreachable")}


@dataclass
class Phase:
    """A play. Times in seconds since the run began."""

    name: str
    began_s: float
    ended_s: float | None = None
    tasks: int = 0
    hosts: dict[str, Counts] = field(default_factory=dict)

    def seconds(self) -> float:
        return (self.ended_s or self.began_s) - self.began_s

    def tally(self) -> dict[str, int]:
        return tally(self.hosts)


@dataclass
class Task:
    name: str
    phase: str
    began_s: float
    ended_s: float
    hosts: int = 0
    last_host: str = ""

    def seconds(self) -> float:
        return self.ended_s - self.began_s


@dataclass
class Step:
    """A host's turn in a roll, as the journal tells it: {phase: seconds since the run began}."""

    tier: str
    host: str
    phases: dict[str, float] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    evidence: str = ""

    def over(self) -> bool:
        return any(phase in self.phases for phase in _ENDS)

    def result(self) -> str:
        names = [phase for phase in self.phases if phase in ("failed", *_ENDS)]
        return ", ".join(names).replace("_", " ") or "not finished"

    def seconds(self) -> float:
        return max(self.phases.values()) - min(self.phases.values()) if self.phases else 0.0


@dataclass(frozen=True)
class Answer:
    """One host's answer to a task. outcome: ok, failed, unreachable, skipped or included
    (counted by `included`, once for each file); module: name without collection."""

    host: str
    task_id: str
    outcome: str
    module: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    ignored: bool = False
    rescued: bool = False


class RunRecord:
    """options: {name: value} of the command line. clock: seconds, monotonic."""

    def __init__(self, playbook: str, options: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.playbook, self.options = playbook, dict(options)
        self.began_at = datetime.datetime.now(datetime.UTC)
        self.phases: list[Phase] = []
        self.hosts: dict[str, Counts] = {}
        self._clock, self._zero = clock, clock()
        self._tasks: list[Task] = []
        self._open: dict[str, Task] = {}
        self._steps: list[Step] = []
        self._versions: dict[tuple[str, str], Entry] = {}
        self._entries: dict[str, list[Entry]] = {"gate": [], "baseline": [], "drain": []}
        self._failures: list[Entry] = []
        self._dropped = 0

    def seconds(self) -> float:
        """Since the run began."""
        return self._clock() - self._zero

    def begin_phase(self, name: str) -> None:
        self.end_phase()
        self._open.clear()
        self.phases.append(Phase(clip(name, 160), self.seconds()))

    def end_phase(self) -> Phase | None:
        """The phase that ends now; None where none is open."""
        if not self.phases or self.phases[-1].ended_s is not None:
            return None
        self.phases[-1].ended_s = self.seconds()
        return self.phases[-1]

    def begin_task(self, task_id: str, name: str) -> None:
        now = self.seconds()
        if not self.phases:
            self.begin_phase("")
        self.phases[-1].tasks += 1
        task = Task(clip(name, 160), self.phases[-1].name, now, now)
        self._tasks.append(task)
        self._open[task_id] = task

    def answer(self, answer: Answer) -> Step | None:
        """Notes an answer; returns the step of a roll that is over by it."""
        task = self._open.get(answer.task_id)
        if task is None:
            self.begin_task(answer.task_id, "")
            task = self._open[answer.task_id]
        task.ended_s, task.last_host = self.seconds(), answer.host
        if answer.outcome != "skipped":
            task.hosts += 1
        self._count(answer)
        if answer.outcome in ("failed", "unreachable"):
            self._note_failure(answer, task)
        ended = None
        for entry in entries(answer.module, answer.result, task.name):
            ended = self._note(entry, answer.host, task) or ended
        return ended

    def _count(self, answer: Answer) -> None:
        if answer.outcome == "included":
            return
        good = answer.outcome == "ok" or answer.ignored
        for counts in self._counts(answer.host):
            if good:
                counts.ok += 1
                counts.ignored += answer.ignored
                counts.changed += bool(answer.result.get("changed"))
            else:
                name = "rescued" if answer.rescued else answer.outcome
                setattr(counts, name, getattr(counts, name) + 1)

    def included(self, hosts: Iterable[str]) -> None:
        """A file or a role was included by these hosts."""
        for counts in (counts for host in hosts for counts in self._counts(host)):
            counts.ok += 1

    def _counts(self, host: str) -> tuple[Counts, Counts]:
        return self.hosts.setdefault(host, Counts()), self.phases[-1].hosts.setdefault(host, Counts())

    def _note_failure(self, answer: Answer, task: Task) -> None:
        if len(self._failures) >= MOST_FAILURES:
            self._dropped += 1
            return
        self._failures.append(
            {
                "host": answer.host,
                "task": task.name,
                "phase": task.phase,
                "kind": answer.outcome,
                "handled": "rescued" if answer.rescued else "ignored" if answer.ignored else "",
                "message": _message(answer.result),
                "at_s": round(self.seconds(), 1),
            }
        )

    def _note(self, entry: Entry, host: str, task: Task) -> Step | None:
        kind = entry.pop("kind")
        if kind == "journal":
            return self._note_step(entry)
        if kind in ("version", "installed"):
            self._note_version(entry, host, seen_only=kind == "installed")
        elif len(self._entries[kind]) >= MOST_ENTRIES:
            self._dropped += 1
        else:
            self._entries[kind].append({"host": host, "phase": task.phase, "at_s": round(self.seconds(), 1), **entry})
        return None

    def _note_version(self, entry: Entry, host: str, seen_only: bool) -> None:
        known = self._versions.get((host, entry["component"]))
        if known is not None:
            known["after"] = entry["after"]
        elif len(self._versions) < MOST_ENTRIES:
            before = entry["after"] if seen_only else entry["before"]
            self._versions[host, entry["component"]] = {"host": host, **entry, "before": before}
        else:
            self._dropped += 1

    def _note_step(self, entry: Entry) -> Step | None:
        """Several keepers write the same entry: the first counts."""
        phase = entry["phase"]
        step = next((s for s in reversed(self._steps) if (s.tier, s.host) == (entry["tier"], entry["host"])), None)
        if step is None or (step.over() and phase == "began" and list(step.phases)[-1] != "began"):
            if len(self._steps) >= MOST_ENTRIES:
                self._dropped += 1
                return None
            step = Step(entry["tier"], entry["host"])
            self._steps.append(step)
        if phase in step.phases:
            return None
        step.phases[phase] = self.seconds()
        for key in ("before", "after", "evidence"):
            if entry[key]:
                setattr(step, key, entry[key])
        return step if phase in _ENDS else None

    def _after(self, step: Step) -> str:
        """As the journal says, else as the host's versions say."""
        return step.after or str(self._versions.get((step.host, step.tier), {}).get("after", ""))

    def slowest(self) -> list[Task]:
        return sorted(self._tasks, key=lambda task: -task.seconds())[:SLOWEST]

    def failed(self) -> bool:
        return any(counts.failed or counts.unreachable for counts in self.hosts.values())

    def document(self, state: str) -> dict[str, Any]:
        """The report. state: finished, failed or interrupted. Not redacted yet."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "run": {
                "playbook": self.playbook,
                "state": state,
                "began": self.began_at.isoformat(timespec="seconds"),
                "seconds": round(self.seconds(), 1),
                "tasks": len(self._tasks),
                "options": self.options,
                "dropped": self._dropped,
            },
            "hosts": [
                {"host": host, "result": counts.result(), **asdict(counts)}
                for host, counts in sorted(self.hosts.items())
            ],
            "phases": [
                {"name": p.name, "hosts": len(p.hosts), **p.tally(), "tasks": p.tasks,
                 "began_s": round(p.began_s, 1), "seconds": round(p.seconds(), 1)}
                for p in self.phases
            ],
            "steps": [
                {"tier": s.tier, "host": s.host, "result": s.result(), "before": s.before, "after": self._after(s),
                 "evidence": s.evidence, "seconds": round(s.seconds(), 1),
                 "phases": [{"phase": phase, "at_s": round(at, 1)} for phase, at in s.phases.items()]}
                for s in self._steps
            ],
            "versions": [self._versions[key] for key in sorted(self._versions)],
            "gates": self._entries["gate"],
            "baselines": self._entries["baseline"],
            "drains": self._entries["drain"],
            "slowest_tasks": [
                {"task": t.name, "phase": t.phase, "seconds": round(t.seconds(), 2), "hosts": t.hosts,
                 "last_host": t.last_host}
                for t in self.slowest()
            ],
            "failures": self._failures,
        }  # fmt: skip


def _message(result: Mapping[str, Any]) -> str:
    """`msg` of the result, or of the first item of its loop that failed; nothing of one that is hidden."""
    if censored(result):
        return _HIDDEN_MESSAGE
    items = result.get("results")
    for item in items if isinstance(items, list) else []:
        if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable")):
            return _HIDDEN_MESSAGE if censored(item) else message(item.get("msg")) or "failed without a message"
    return message(result.get("msg")) or "failed without a message"
