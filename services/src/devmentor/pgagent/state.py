"""What the agent must not forget: one small JSON file per fact, fsynced and put in place by a rename."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devmentor_ha.rules import Rule

ARCHIVE_HOLD = "archive-hold"
REMAKING = "remaking"


@dataclass(frozen=True, slots=True)
class Promise:
    """No epoch below this one is served, and this one only for its controller."""

    epoch: int
    controller: str
    at: float

    def admits(self, epoch: int, controller: str) -> bool:
        """Whether a call of this epoch and controller may go on."""
        return epoch > self.epoch or (epoch == self.epoch and controller == self.controller)


class State:
    """Durable facts in one directory, which lies outside the data directory: rewind and reclone leave it alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        stored = self._read("promise") or {}
        self.promise = Promise(
            int(stored.get("epoch", 0)), str(stored.get("controller", "")), float(stored.get("at", 0))
        )
        self.committed = self._rule("committed")
        self.newest = self._rule("newest")
        self.following: dict[str, Any] = self._read("following") or {"epoch": 0, "leader": ""}
        self.timelines: dict[str, int] = self._read("timelines") or {}
        self.paused: dict[str, Any] = self._read("paused") or {"until": 0, "reason": ""}

    def _read(self, name: str) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            content = json.loads((self.directory / f"{name}.json").read_text())
            if not isinstance(content, dict):
                raise ValueError(f"{self.directory}/{name}.json does not hold an object; restore or remove it")
            return content
        return None

    def _rule(self, name: str) -> Rule | None:
        stored = self._read(name)
        return Rule.from_dict(stored) if stored else None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_durably(self.directory / f"{name}.json", json.dumps(content, indent=1) + "\n")

    def set_promise(self, epoch: int, controller: str) -> None:
        """Compare-and-set. Raises ValueError where the promise would go back: callers ask `admits` first."""
        if not self.promise.admits(epoch, controller):
            raise ValueError(f"promise {self.promise.epoch} does not admit {epoch} of {controller}")
        promise = Promise(epoch, controller, time.time())
        self._write("promise", {"epoch": epoch, "controller": controller, "at": promise.at})
        self.promise = promise

    def know_committed(self, rule: Rule) -> bool:
        """Remember a committed rule, unless a higher one is known. True where it is news."""
        if self.committed is not None and self.committed.key >= rule.key:
            return False
        self._write("committed", rule.as_dict())
        self.committed = rule
        return True

    def know_newest(self, rule: Rule | None) -> None:
        """Remember the newest rule row that this node's WAL holds; after a rewind it may be an older one."""
        if rule is not None and rule != self.newest:
            self._write("newest", rule.as_dict())
            self.newest = rule

    def set_following(self, epoch: int, leader: str) -> None:
        """Whom this node streams from, and since which epoch."""
        if self.following != {"epoch": epoch, "leader": leader}:
            self.following = {"epoch": epoch, "leader": leader}
            self._write("following", self.following)

    def set_timelines(self, timelines: Mapping[str, int]) -> None:
        """Timeline -> epoch that made it, of the history that this node's data has."""
        if dict(timelines) != self.timelines:
            self.timelines = dict(timelines)
            self._write("timelines", self.timelines)

    def set_paused(self, until: float, reason: str) -> None:
        """No automatic action before this time (seconds since 1970)."""
        self.paused = {"until": until, "reason": reason}
        self._write("paused", self.paused)

    @property
    def is_paused(self) -> bool:
        return float(self.paused["until"]) > time.time()

    def remake(self, under_way: bool) -> None:
        """While the file is there the data is half made: the start guard refuses, and only a new copy helps."""
        path = self.directory / REMAKING
        if under_way:
            write_durably(path, "")
        else:
            path.unlink(missing_ok=True)

    @property
    def remaking(self) -> bool:
        return (self.directory / REMAKING).exists()

    def hold_archive(self, hold: bool) -> None:
        """While the file is there, archive_command fails and PostgreSQL keeps its WAL."""
        path = self.directory / ARCHIVE_HOLD
        if hold:
            write_durably(path, "")
        else:
            path.unlink(missing_ok=True)

    @property
    def archive_held(self) -> bool:
        return (self.directory / ARCHIVE_HOLD).exists()


def write_durably(path: Path, content: str, mode: int = 0o640) -> None:
    """Replace a file so that after a power failure it is the old one or the new one, whole."""
    staged = path.with_name(f".{path.name}.new")
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as handle:  # noqa: PTH123
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    staged.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
