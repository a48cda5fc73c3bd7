"""A health gate: all checks in rounds, until enough rounds in a row passed, too many did not, or the deadline came.

The terms are those of Kubernetes' probes. Only `pass` opens a gate: what cannot be read is unknown, as in verify.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import time
from typing import Any

from .checks_base import PASS, UNKNOWN
from .gate_options import Check, Timing
from .gate_probe import Answer, Job, run_jobs

TIMELINE_LIMIT = 200

# (check, memory, limit in seconds) -> the probe.
MakeJob = c.Callable[[Check, c.Mapping[str, Any], float], Job]

REMEDIES = {
    "http": "read the journal of what serves that URL, and this host's firewall and certificate",
    "tcp": "start what listens there, or open the port",
    "sql": "run the query by hand as that user",
    "promql": "ask Prometheus for the query's samples; an empty answer is a target that is down or a wrong label",
    "systemd": "journalctl -u of that unit",
    "qdrant": "start the peer that is missing; ask each one for /cluster and /collections/NAME/cluster",
    "postgres": "playbooks/pg_status.yml tells what all agents see",
    "canary": "playbooks/verify.yml --limit this host asks the same, with a row for each step",
}


@dataclasses.dataclass
class Outcome:
    """How the gate ended. why: what ended it, in words. timeline: changes of a check's result, at most 200."""

    passed: bool = False
    why: str = ""
    rounds: int = 0
    waited_s: float = 0.0
    checks: list[dict[str, str]] = dataclasses.field(default_factory=list)
    timeline: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    timeline_dropped: int = 0

    def note(self, at: float, name: str, answer: Answer) -> None:
        """Keep a changed result; of very many the first and the last hundred."""
        entry = {"at": round(at, 1), "name": name, "result": answer.result, "evidence": answer.evidence}
        self.timeline.append(entry)
        if len(self.timeline) > TIMELINE_LIMIT:
            del self.timeline[TIMELINE_LIMIT // 2]
            self.timeline_dropped += 1

    def message(self) -> str:
        """What did not pass, what was seen there and the remedy."""
        if self.passed:
            return f"all {len(self.checks)} checks passed after {self.waited_s:.1f} s"
        bad = [check for check in self.checks if check["result"] != PASS]
        lines = [
            f"check '{check['name']}' ({check['type']}): {check['result']}: {check['evidence']}. "
            f"Remedy: {REMEDIES[check['type']]}."
            for check in bad
        ]
        kept = [] if bad else ["all passed in the last round, but not often enough in a row"]
        return f"the gate stays closed after {self.waited_s:.1f} s ({self.why}):\n" + "\n".join(lines + kept)


class Gate:
    """Asks until it is known. `run` is called once."""

    def __init__(
        self,
        checks: c.Sequence[Check],
        timing: Timing,
        make_job: MakeJob,
        run: c.Callable[[c.Mapping[str, Job]], dict[str, Answer]] = run_jobs,
    ) -> None:
        self.checks = checks
        self.timing = timing
        self.make_job = make_job
        self.run_jobs = run
        self.memory: dict[str, c.Mapping[str, Any]] = {check.name: {} for check in checks}
        self.outcome = Outcome()
        self.began = time.monotonic()
        self.last: dict[str, str] = {}

    def run(self, once: bool = False) -> Outcome:
        """Ask in rounds; with `once` a single round, at once."""
        self.began = time.monotonic()
        if not once:
            self.remember()
            time.sleep(self.timing.initial_delay_seconds)
        passes = fails = 0
        while True:
            round_began = time.monotonic()
            good = self.round()
            passes, fails = (passes + 1, 0) if good else (0, fails + 1)
            if once or passes >= self.timing.success_threshold:
                return self.end(good, "asked once" if once else "")
            if self.timing.failure_threshold and fails >= self.timing.failure_threshold:
                return self.end(False, f"{fails} rounds in a row did not pass")
            follows = max(round_began + self.timing.period_seconds, time.monotonic())
            if follows >= self.deadline:
                return self.end(False, f"the deadline of {self.timing.deadline_seconds:g} s")
            time.sleep(max(follows - time.monotonic(), 0))

    @property
    def deadline(self) -> float:
        return self.began + self.timing.deadline_seconds

    def remember(self) -> None:
        """What units are like before the delay: a restart in it counts."""
        self.ask([check for check in self.checks if check.type == "systemd"])

    def ask(self, checks: c.Sequence[Check]) -> dict[str, Answer]:
        """One probe of each; none goes on after the deadline."""
        left = max(self.deadline - time.monotonic(), 0.1)
        jobs = {
            check.name: self.make_job(check, self.memory[check.name], min(check.limit(self.timing), left))
            for check in checks
        }
        answers = self.run_jobs(jobs)
        for name, answer in answers.items():
            # One that was cut has told nothing, and takes nothing away.
            self.memory[name] = answer.memory or self.memory[name]
        return answers

    def round(self) -> bool:
        """Ask all; whether every one passed."""
        answers = self.ask(self.checks)
        self.outcome.rounds += 1
        self.outcome.checks = []
        for check in self.checks:
            answer = answers.get(check.name, Answer(UNKNOWN, "was not asked"))
            row = {"name": check.name, "type": check.type, "result": answer.result, "evidence": answer.evidence}
            self.outcome.checks.append(row)
            if self.last.get(check.name) != answer.result:
                self.last[check.name] = answer.result
                self.outcome.note(time.monotonic() - self.began, check.name, answer)
        return all(row["result"] == PASS for row in self.outcome.checks)

    def end(self, passed: bool, why: str) -> Outcome:
        self.outcome.passed, self.outcome.why = passed, why
        self.outcome.waited_s = round(time.monotonic() - self.began, 1)
        return self.outcome
