"""The phase table of a run in the terminal: plain ASCII of at most 110 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .run_report import Phase, RunRecord, Step, Task, tally

_NAME = 56
_SHOWN = ("ok", "changed", "failed", "unreachable")


def duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def phase_line(phase: Phase) -> str:
    """What is printed when a phase has ended."""
    counts = "  ".join(f"{name} {count}" for name, count in phase.tally().items())
    return f"phase  {_fit(phase.name)}  {counts}  {duration(phase.seconds())}"


def step_line(step: Step) -> str:
    """What is printed when a host's turn in a roll is over."""
    return f"step   {_fit(f'{step.tier} on {step.host}')}  {step.result()}  {duration(step.seconds())}"


def table(record: RunRecord) -> list[str]:
    """All phases in which a host did something, and the whole run."""
    heading = "  ".join(f"{name:>{_width(name)}}" for name in _SHOWN)
    return [
        f"{'phase':{_NAME}}  {heading}    duration",
        *(_row(phase.name, phase.tally(), phase.seconds()) for phase in record.phases if phase.hosts),
        _row("all", tally(record.hosts), record.seconds()),
    ]


def _row(name: str, hosts: Mapping[str, int], seconds: float) -> str:
    counts = "  ".join(f"{count:>{_width(shown)}}" for shown, count in hosts.items())
    return f"{_fit(name)}  {counts}  {duration(seconds):>10}"


def _width(name: str) -> int:
    return max(7, len(name))


def slowest(tasks: Iterable[Task], least_seconds: float = 1.0) -> list[str]:
    """The slowest tasks' lines, those that took no time left out."""
    return [f"{duration(t.seconds()):>12}  {t.name}" for t in tasks if t.seconds() >= least_seconds]


def _fit(name: str) -> str:
    return f"{name:{_NAME}}" if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
