"""Timelines of a node, each with the epoch that made it: two promotions may pick the same timeline number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stretch:
    """One timeline of a history. `end`: LSN in bytes at which the next one forked off, None for the current one.
    `epoch`: that of the leader who made it, 0 where this node does not know."""

    timeline: int
    epoch: int
    end: int | None


@dataclass(frozen=True)
class Lineage:
    """Timelines from the first to the current one."""

    stretches: tuple[Stretch, ...]

    @classmethod
    def build(cls, ends: Iterable[tuple[int, int]], current: int, epochs: Mapping[str, int]) -> Lineage:
        """From a history file (timeline, LSN of its end), the current timeline, and what is known of epochs.

        Timeline 1 is that of the first epoch.
        """

        def epoch(timeline: int) -> int:
            return epochs.get(str(timeline), 1 if timeline == 1 else 0)

        past = [Stretch(timeline, epoch(timeline), end) for timeline, end in ends]
        return cls((*past, Stretch(current, epoch(current), None)))

    @property
    def timeline(self) -> int:
        return self.stretches[-1].timeline

    def epochs(self) -> dict[str, int]:
        return {str(part.timeline): part.epoch for part in self.stretches}

    def as_list(self) -> list[dict[str, Any]]:
        return [{"timeline": part.timeline, "epoch": part.epoch, "end": part.end} for part in self.stretches]

    @classmethod
    def from_list(cls, entries: Sequence[Mapping[str, Any]]) -> Lineage:
        """The reverse of `as_list`. KeyError or TypeError for anything else, ValueError for nothing or Infinity."""
        if not entries:
            raise ValueError("a lineage has at least one timeline")
        try:
            return cls(
                tuple(
                    Stretch(int(e["timeline"]), int(e["epoch"]), None if e["end"] is None else int(e["end"]))
                    for e in entries
                )
            )
        except OverflowError as error:  # JSON's Infinity
            raise ValueError(f"{error} in a lineage") from error

    def same_number_other_epoch(self, leader: Lineage) -> bool:
        """Whether the current timeline has a number that the leader's history has too, made by another epoch.

        pg_rewind compares numbers and fork points: where both agree it sees no divergence, though there is one.
        """
        mine = self.stretches[-1]
        return any(part.timeline == mine.timeline and part.epoch != mine.epoch for part in leader.stretches)

    def differs_from(self, leader: Lineage, lsn: int) -> str:
        """Why a node whose WAL ends at `lsn` (bytes) on this lineage is no part of the leader's; '' if it is one."""
        for mine, theirs in zip(self.stretches, leader.stretches, strict=False):
            if mine.timeline != theirs.timeline or mine.epoch != theirs.epoch:
                return (
                    f"timeline {mine.timeline} of epoch {mine.epoch} here is timeline {theirs.timeline} of epoch "
                    f"{theirs.epoch} there"
                )
            if mine.end is not None and mine.end != theirs.end:
                return f"timeline {mine.timeline} ended at another place there"
        if len(self.stretches) > len(leader.stretches):
            return f"the leader has no timeline {self.timeline}"
        fork = leader.stretches[len(self.stretches) - 1].end
        if fork is not None and lsn > fork:
            return f"its WAL on timeline {self.timeline} goes beyond the fork by {lsn - fork} bytes"
        return ""
