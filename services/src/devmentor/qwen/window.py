"""Requests and errors of the last seconds, counted in parts of the span so that nothing is kept per request."""

import time
from collections.abc import Callable

_PARTS = 10


class Window:
    """Counts over a sliding window. It covers nine tenths of `span_s` and what there is of the present tenth."""

    def __init__(self, span_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._part_s = span_s / _PARTS
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._parts = [[0, 0] for _ in range(_PARTS)]
        self._volume = self._errors = 0
        self._now = int(self._clock() / self._part_s)

    def record(self, *, error: bool) -> None:
        """Count a request."""
        self._move()
        part = self._parts[self._now % _PARTS]
        part[0] += 1
        part[1] += error
        self._volume += 1
        self._errors += error

    @property
    def volume(self) -> int:
        """Requests in the window, errors included."""
        self._move()
        return self._volume

    @property
    def errors(self) -> int:
        """Errors in the window."""
        self._move()
        return self._errors

    def _move(self) -> None:
        now = int(self._clock() / self._part_s)
        for number in range(max(self._now + 1, now - _PARTS + 1), now + 1):
            part = self._parts[number % _PARTS]
            self._volume -= part[0]
            self._errors -= part[1]
            part[0] = part[1] = 0
        self._now = max(now, self._now)
