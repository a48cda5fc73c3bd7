"""Probes side by side, each in a process of its own: one that hangs is cut at its limit with all that it started."""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from typing import Any

from .checks_base import UNKNOWN

Tell = c.Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a probe found. memory: what the next probe of the same check is to know."""

    result: str
    evidence: str
    memory: c.Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Job:
    """One probe: `run` gets a function that tells what was found so far; limit in seconds."""

    run: c.Callable[[Tell], Answer]
    limit: float


class _Child:
    """A probe that runs, and what it told."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("fork")
        self.receiver, sender = context.Pipe(duplex=False)
        self.limit, self.deadline = job.limit, time.monotonic() + job.limit
        self.so_far = ""
        self.answer: Answer | None = None
        self.process = context.Process(target=_work, args=(job, sender), daemon=True)
        self.process.start()
        sender.close()

    def read(self) -> None:
        """One message; an end without an answer is unknown."""
        try:
            message = self.receiver.recv()
        except (EOFError, OSError):
            self.process.join(1)
            self.answer = Answer(UNKNOWN, f"the probe ended without an answer (exit {self.process.exitcode})")
            return
        if isinstance(message, Answer):
            self.answer = message
        else:
            self.so_far = str(message)

    def cut(self) -> None:
        found = f"; until then: {self.so_far}" if self.so_far else ""
        self.answer = Answer(UNKNOWN, f"no answer within {self.limit:.3g} s{found}")

    def end(self) -> None:
        """Kill what is left of it: itself and the commands that it started."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.receiver.close()


def _work(job: Job, sender: multiprocessing.connection.Connection) -> None:
    os.setsid()  # a process group of its own, so that commands are cut with it
    try:
        answer = job.run(sender.send)
    except Exception as error:
        answer = Answer(UNKNOWN, f"{type(error).__name__}: {error}")
    sender.send(answer)


def run_jobs(jobs: c.Mapping[str, Job]) -> dict[str, Answer]:
    """Run all at the same time; back when each has answered or was cut."""
    children = {name: _Child(job) for name, job in jobs.items()}
    try:
        while waiting := {child.receiver: child for child in children.values() if child.answer is None}:
            pause = max(min(child.deadline for child in waiting.values()) - time.monotonic(), 0)
            for receiver in multiprocessing.connection.wait(list(waiting), pause):
                waiting[receiver].read()  # type: ignore[index]
            for child in waiting.values():
                if child.answer is None and time.monotonic() >= child.deadline:
                    child.cut()
        return {name: child.answer for name, child in children.items() if child.answer is not None}
    finally:
        for child in children.values():
            child.end()
