"""A circuit breaker: after N errors in a row nobody is let through for a while, then one request at a time probes.

closed --N errors in a row--> open --after open_s--> half-open --success--> closed
                                ^------------error--------'
"""

import time
from collections.abc import Callable
from enum import IntEnum

from devmentor.qwen import metrics


class State(IntEnum):
    """The metric's values."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """One engine's breaker. After an `allow()` that said yes comes one of `success`, `error`, `abandon` and `began`."""

    def __init__(self, name: str, *, errors: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = errors
        self._open_s = open_s
        self._clock = clock
        self._errors = 0
        self._opened_at = 0.0
        self._probing = False
        self._state = State.CLOSED
        self._gauge = metrics.BREAKER_STATE.labels(name)
        self._opened = metrics.BREAKER_OPENED.labels(name)
        self._gauge.set(State.CLOSED)

    @property
    def state(self) -> State:
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a request may probe; 0 where requests pass."""
        if self._state is State.CLOSED:
            return 0.0
        return max(0.0, self._opened_at + self._open_s - self._clock())

    def allow(self) -> bool:
        """Whether a request may go to the engine now."""
        if self._state is State.CLOSED:
            return True
        if self._probing or self.retry_after_s > 0:
            return False
        self._probing = True
        self._set(State.HALF_OPEN)
        return True

    def success(self) -> None:
        """The engine answered, if only to refuse the request as wrong."""
        self._errors = 0
        self._probing = False
        self._set(State.CLOSED)

    def began(self) -> None:
        """A stream has its first event, and its end comes as `success` or `error`, or not at all.

        Others need not wait for a probe's end, but the errors before it still count: the next one opens again.
        """
        if self._state is State.HALF_OPEN:
            self._probing = False
            self._set(State.CLOSED)

    def error(self) -> None:
        """The engine did not answer, or said that it is broken."""
        self._errors += 1
        self._probing = False
        if self._state is State.HALF_OPEN or self._errors >= self._limit:
            self._opened_at = self._clock()
            if self._state is not State.OPEN:
                self._opened.inc()
            self._set(State.OPEN)

    def abandon(self) -> None:
        """The client left: the engine is neither better nor worse for it."""
        self._probing = False

    def _set(self, state: State) -> None:
        self._state = state
        self._gauge.set(state)
