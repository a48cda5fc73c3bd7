"""A circuit breaker: an engine that fails is left alone for a while, then one request at a time probes it.

    closed --errors in a row, or error rate--> open --open_s--> half-open --success--> closed
                                                | ^-----------------error------'         ^
                                                '--canary, after errors in a row---------'

Two causes open it. `consecutive`: so many errors in a row; nobody is let through. `rate`: among the last requests (at
least `min_volume` within `window_s`) the share of errors is above `error_rate`. Such an engine still answers nearly
always, so requests that nothing else can serve are let through as a last resort: without a fallback, an open circuit
would turn one error in 500 into nothing but errors.

A canary is a token that we ask for ourselves, now and then, to see whether the engine works. After errors in a row its
success closes at once, on probation: the next error opens again. Its failure before `open_s` is over says nothing new.
A single success says nothing of a rate, so there the canary waits its turn as every request does
(docs/decisions/0074-ready-and-the-breaker.md).

`min_volume` is at least 1 / error_rate: a single error never is a rate. A breaker that closes again forgets its window:
the next opening by rate takes `min_volume` new requests, so the engine always gets its way back. A probe that says
nothing for `open_s` is given up and another one may go. What was let through before the state last changed says nothing
any more.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from devmentor.qwen import metrics
from devmentor.qwen.window import Window


class State(IntEnum):
    """The metric's values."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Cause(StrEnum):
    """Why it opened."""

    CONSECUTIVE = "consecutive"
    RATE = "rate"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """`errors` in a row open, or a share above `error_rate` (0: never) of at least `min_volume` within `window_s`."""

    errors: int = 5
    open_s: float = 30.0
    error_rate: float = 0.001
    min_volume: int = 1000
    window_s: float = 300.0


class Pass:
    """A request that was let through. `success`, `error` or `abandon` ends it; a stream `began` before."""

    __slots__ = ("_breaker", "canary", "epoch")

    def __init__(self, breaker: "Breaker", epoch: int) -> None:
        self._breaker = breaker
        self.epoch = epoch
        self.canary = False

    def success(self) -> None:
        """The engine answered, if only to refuse the request as wrong."""
        self._breaker.succeeded(self)

    def began(self) -> None:
        """A stream has its first event; its end comes as `success` or `error`, or not at all."""
        self._breaker.began(self)

    def error(self) -> None:
        """The engine did not answer, or said that it is broken."""
        self._breaker.failed(self)

    def abandon(self) -> None:
        """The client left: the engine is neither better nor worse for it."""
        self._breaker.abandoned(self)


class Breaker:
    """One engine's breaker: `allow` gives a Pass, which tells how it went."""

    def __init__(self, name: str, limits: BreakerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._limits = limits
        self._clock = clock
        self._window = Window(limits.window_s, clock)
        self._errors = 0
        self._epoch = 0
        self._cause = Cause.CONSECUTIVE
        self._opened_at = 0.0
        self._probe: Pass | None = None
        self._probe_since = 0.0
        self._state = State.CLOSED
        self._gauge = metrics.BREAKER_STATE.labels(name)
        self._gauge.set(State.CLOSED)
        metrics.BREAKER_WINDOW_REQUESTS.labels(name).set_function(lambda: self._window.volume)
        metrics.BREAKER_WINDOW_ERRORS.labels(name).set_function(lambda: self._window.errors)

    @property
    def state(self) -> State:
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a request may probe; 0 where requests pass."""
        if self._state is State.CLOSED:
            return 0.0
        return max(0.0, self._opened_at + self._limits.open_s - self._clock())

    def allow(self, *, last_resort: bool = False) -> Pass | None:
        """A pass to the engine; None where it is to be left alone. `last_resort`: nothing else can answer."""
        if self._state is State.CLOSED:
            return Pass(self, self._epoch)
        now = self._clock()
        probing = self._probe is not None and now - self._probe_since < self._limits.open_s
        if not probing and self.retry_after_s <= 0:
            self._set(State.HALF_OPEN)
            self._probe, self._probe_since = Pass(self, self._epoch), now
            return self._probe
        if last_resort and self._cause is Cause.RATE:
            return Pass(self, self._epoch)
        return None

    def canary(self) -> Pass | None:
        """A pass for a canary; None where the circuit is closed, or where it must wait."""
        if self._state is State.CLOSED:
            return None
        passed = self.allow()
        if passed is None and self._cause is Cause.CONSECUTIVE:
            passed = Pass(self, self._epoch)
        if passed is not None:
            passed.canary = self._cause is Cause.CONSECUTIVE
        return passed

    def succeeded(self, passed: Pass) -> None:
        if passed.epoch != self._epoch:
            return
        if passed.canary:
            self._close()
            self._errors = self._limits.errors - 1
            return
        self._errors = 0
        if self._state is State.CLOSED:
            self._window.record(error=False)
            self._judge_rate()
        elif passed is self._probe:
            self._close()

    def began(self, passed: Pass) -> None:
        """A probe that streams holds nobody up until its end, but the next error opens again."""
        if passed is self._probe and passed.epoch == self._epoch:
            self._close()
            self._errors = max(self._errors, self._limits.errors - 1)
            passed.epoch = self._epoch

    def failed(self, passed: Pass) -> None:
        if passed.epoch != self._epoch or (passed.canary and passed is not self._probe):
            return
        self._errors += 1
        if passed is self._probe:
            # Open again, as hard or as soft as before.
            self._open(Cause.PROBE)
        elif self._errors >= self._limits.errors:
            self._open(Cause.CONSECUTIVE)
        elif self._state is State.CLOSED:
            self._window.record(error=True)
            self._judge_rate()

    def abandoned(self, passed: Pass) -> None:
        if passed is self._probe:
            self._probe = None

    def _judge_rate(self) -> None:
        rate, volume = self._limits.error_rate, self._window.volume
        if rate and volume >= self._limits.min_volume and self._window.errors > rate * volume:
            self._open(Cause.RATE)

    def _open(self, cause: Cause) -> None:
        if cause is not Cause.PROBE:
            self._cause = cause
        self._opened_at = self._clock()
        self._turn(State.OPEN)
        metrics.BREAKER_OPENED.labels(self._name, cause).inc()

    def _close(self) -> None:
        self._window.clear()
        self._turn(State.CLOSED)

    def _turn(self, state: State) -> None:
        self._epoch += 1
        self._probe = None
        self._set(state)

    def _set(self, state: State) -> None:
        self._state = state
        self._gauge.set(state)
