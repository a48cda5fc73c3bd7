"""/health says the process is alive, /ready that it may take traffic, and why not."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import Gauge

ANSWER_WITHIN_S = 1.5
"""No check takes longer: a load balancer's probe waits 2 s, and where it gives up, nobody hears that a check has a
grace or is not required."""

READY_CHECK = Gauge("devmentor_ready_check", "1 where a readiness check passes", ["service", "check"])


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a service needs. `probe` returns a short detail or raises.

    Where `required` is False a failure is reported but leaves the service ready: it has a
    degraded way to answer without that part. A required one that has passed may fail for `grace_s` before the service
    is not ready: for what every replica shares and what comes back by itself, where leaving the load balancer helps
    nobody and coming back takes longer than the failure.
    """

    name: str
    probe: Callable[[], Awaitable[str]]
    required: bool = True
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of all checks at one moment."""

    ready: bool
    body: dict[str, Any]


class Readiness:
    """Runs the checks side by side, all within ANSWER_WITHIN_S, at most once in `max_age_s`."""

    def __init__(self, service: str, checks: list[Check], max_age_s: float = 1.0) -> None:
        self._service = service
        self._checks = checks
        self._max_age_s = max_age_s
        self._draining = False
        self._lock = asyncio.Lock()
        self._latest: tuple[float, dict[str, dict[str, Any]]] | None = None
        self._passed_at: dict[str, float] = {}

    @property
    def draining(self) -> bool:
        """Whether the service is on its way out."""
        return self._draining

    def drain(self) -> None:
        """From now on not ready, whatever the checks say."""
        self._draining = True

    async def report(self) -> Report:
        """The state of every check; concurrent callers share one run."""
        async with self._lock:
            if self._latest is None or time.monotonic() - self._latest[0] > self._max_age_s:
                results = await asyncio.gather(*(self._run(check) for check in self._checks))
                self._latest = time.monotonic(), dict(zip([c.name for c in self._checks], results, strict=True))
        outcome = self._latest[1]
        ready = not self._draining and all(outcome[c.name]["ok"] or self._graced(c) for c in self._checks if c.required)
        status = "draining" if self._draining else "ready" if ready else "not_ready"
        return Report(ready, {"status": status, "service": self._service, "checks": outcome})

    def _graced(self, check: Check) -> bool:
        return time.monotonic() - self._passed_at.get(check.name, -math.inf) < check.grace_s

    async def _run(self, check: Check) -> dict[str, Any]:
        start = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                ok, detail = True, await check.probe()
        except TimeoutError:
            ok, detail = False, f"no answer in {ANSWER_WITHIN_S:g} s"
        except Exception as error:  # whatever a dependency's client raises means: not there
            ok, detail = False, f"{type(error).__name__}: {error}"[:300]
        READY_CHECK.labels(self._service, check.name).set(ok)
        if ok:
            self._passed_at[check.name] = start
        ms = round((time.monotonic() - start) * 1000, 1)
        return {"ok": ok, "required": check.required, "detail": detail, "ms": ms}
