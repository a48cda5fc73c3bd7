"""Which instances of a tier the gateways send requests to, looked at once a second while something happens.

HAProxy's runtime socket is reached through the host's file system from the machine that carries the lab: a process in
the host each second would load what is measured.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lab.errors import LabError
from lab.host import Host
from tests.chaos.qwen.deployed import servers

TIERS = ("qwen", "pbml")
SOCKET = "/proc/{init}/root/run/haproxy/admin.sock"
PERIOD_S, TIMEOUT_S = 1.0, 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds since the load began. `up`: tier -> its servers that are up and not drained; empty where the gateway did
    not say, with the reason in `error`."""

    at: float
    gateway: str
    up: dict[str, list[str]] = field(default_factory=dict)
    error: str = ""


def up(stat: str) -> dict[str, list[str]]:
    """Tier -> servers that get requests: up, be it with a failed probe, and neither drained nor in maintenance. A tier
    of which the gateway names no server at all is left out."""
    found = {tier: servers(stat, tier) for tier in TIERS}
    return {
        tier: sorted(name for name, status in named.items() if status.split(" ")[0] == "UP")
        for tier, named in found.items()
        if named
    }


def show_stat(host: Host) -> str:
    """HAProxy's own account of its servers. Raises OSError, LabError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(SOCKET.format(init=host.require_init()))
        connection.sendall(b"show stat\n")
        with connection.makefile("rb") as answer:
            return answer.read().decode("utf-8", "replace")


def least(samples: Iterable[Sample], tier: str) -> int | None:
    """The fewest serving instances that any gateway had; None where none ever said."""
    return min((len(sample.up[tier]) for sample in samples if tier in sample.up), default=None)


def unknown(samples: Sequence[Sample]) -> int:
    """Samples without an answer: they prove nothing."""
    return sum(not sample.up for sample in samples)


class Watch:
    """Samples the gateways from a thread of its own from `start` to `stop`. `began`: monotonic seconds of the zero."""

    def __init__(self, gateways: Sequence[Host], began: float) -> None:
        self.samples: list[Sample] = []
        self._gateways, self._began = gateways, began
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(host,), daemon=True) for host in gateways]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, host: Host) -> None:
        while True:
            self.samples.append(self._look(host))
            # In step with the clock: what a look takes is no drift.
            if self._over.wait(PERIOD_S - (time.monotonic() - self._began) % PERIOD_S):
                return

    def _look(self, host: Host) -> Sample:
        at = round(time.monotonic() - self._began, 2)
        try:
            found = up(show_stat(host))
        except (OSError, LabError) as error:
            return Sample(at, host.name, error=str(error)[:200])
        return Sample(at, host.name, found, error="" if found else "it names no server")
