"""What a power failure may have left, by what was acknowledged before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# The agent's own code. Its disks are kept from round to round.
SUBJECTS = ("promise", "rule")
# The same code with fsync left out, on new disks in each round. What they do not lose, the test could not have found.
CONTROLS = ("no-fsync", "no-file-fsync", "no-folder-fsync", "rule-no-fsync")


@dataclass
class Result:
    """One round. Numbers of writes count from 1, and go on over the rounds of a run for SUBJECTS; seconds."""

    seed: int
    round: int
    at: str
    load: float
    boot_s: float = 0.0
    wrote_s: float = 0.0
    acknowledged: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def judge(self, acknowledged: Mapping[str, int], found: Mapping[str, Mapping[str, Any]]) -> None:
        """`acknowledged`: the last number of each subject; `found`: the guest's messages after the next boot."""
        for name in (*SUBJECTS, *CONTROLS):
            told, there = acknowledged[name], found.get(name, {"error": "the guest said nothing of it"})
            number = int(there.get("found", 0))
            self.acknowledged[name], self.found[name] = told, number
            reason = there.get("error") or ("" if there.get("whole") else "what was read is not what was written")
            if reason:
                self.unreadable[name] = reason
            self.lost[name] = told if reason else max(told - number, 0)
            if name in SUBJECTS:
                self.problems += _problems(name, told, number, reason)


def _problems(name: str, told: int, found: int, reason: str) -> Iterable[str]:
    if reason:
        yield f"{name}: {told} acknowledged, unreadable after the power failure: {reason}"
    elif found < told:
        yield f"{name}: {told} acknowledged, {found} found: {told - found} lost"
    elif found > told + 1:
        # One more may have been under way. Two: the acknowledgement of the first did not get here.
        yield f"{name}: {found} found, but only {told} acknowledged: the guest's messages are incomplete"


def inconclusive(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Controls that lost nothing in any round."""
    rounds = list(results)
    return [name for name in CONTROLS if not any(entry["lost"][name] for entry in rounds)]


def line(result: Result) -> str:
    """For a person, several lines."""
    head = (
        f"#{result.round} booted in {result.boot_s:.0f} s, killed after {result.wrote_s:.1f} s of writing, "
        f"load {result.load}"
    )
    rows = []
    for name in (*SUBJECTS, *CONTROLS):
        there = "unreadable" if name in result.unreadable else f"{result.found[name]} found"
        kind = "" if name in SUBJECTS else "control "
        rows.append(f"  {kind + name:<24} {result.acknowledged[name]} acknowledged, {there}, {result.lost[name]} lost")
    return "\n".join([head, *rows, *(f"  PROBLEM {problem}" for problem in result.problems)])
