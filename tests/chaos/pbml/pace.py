"""How fast the clients write: a rate that they share, and a brake where PBML does not keep up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Pace:
    """`rate`: writes a second of all `writers` together; `reads`: fetches a second of all `readers`. Writers wait while
    more than `backlog` versions are not live, as the last look found. `small`: the share of turns of a few words."""

    rate: float = 40.0
    writers: int = 12
    reads: float = 4.0
    readers: int = 2
    backlog: int = 1500
    small: float = 0.7
    waiting: int = 0

    @property
    def write_every_s(self) -> float:
        """Between two writes of one writer."""
        return self.writers / self.rate

    @property
    def read_every_s(self) -> float:
        """Between two fetches of one reader."""
        return self.readers / self.reads

    @property
    def braked(self) -> bool:
        """Whether writers wait for PBML."""
        return self.waiting > self.backlog


def next_due(due: float, now: float, every_s: float) -> float:
    """When the next one begins. What an outage kept from being sent is not made up for all at once."""
    return max(due + every_s, now)


class Brake:
    """Looks at the ledger's backlog beside the round. What can not be asked changes nothing."""

    def __init__(self, pace: Pace, look: Callable[[], int | None], every_s: float = 5.0) -> None:
        self._pace, self._look, self._every_s = pace, look, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="brake")
        self.most = 0
        self.braked_s = 0.0

    def __enter__(self) -> Brake:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self.braked_s += self._every_s * self._pace.braked
            found = self._look()
            if found is not None:
                self._pace.waiting = found
                self.most = max(self.most, found)
