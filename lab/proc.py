"""Run programs so that none of them outlives the lab command that started it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.errors import CommandError

# A killed `lab up` must not leave apt or tar behind: the child dies with its parent, and, being
# PID 1 of a namespace of its own, takes every descendant and every mount it made along.
CONTAINED = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
)  # fmt: skip


def tail(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def run(command: Sequence[str | Path], *, stdin: str | None = None, check: bool = True) -> str:
    """Run a short command, return its standard output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise CommandError(f"`{' '.join(words)}` failed ({done.returncode}): {tail(done.stderr or done.stdout)}")
    return done.stdout


def succeeds(command: Sequence[str | Path]) -> bool:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def run_contained(command: Sequence[str | Path], *, log: Path, what: str) -> None:
    """Run a long command that leaves no process or mount behind, however the lab ends.

    Its output goes to `log`, which is kept beside the result for whoever has to find out why.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        done = subprocess.run(
            [*CONTAINED, *(str(word) for word in command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise CommandError(f"{what} failed ({done.returncode}): {tail(log.read_text(errors='replace'))}", f"read {log}")
