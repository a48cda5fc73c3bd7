"""Drains, readies and waits for one server of HAProxy: what the module `haproxy_server` does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NoReturn

from .haproxy import HaproxyError, Runtime, Server, entries_of, old_workers

PAUSE = 0.25  # seconds between two looks


class ControlError(Exception):
    """What was asked for did not come about; `facts` is what is known by then."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked for. None leaves a thing as it is; seconds count from where the waiting begins."""

    backend: str
    server: str
    state: str | None = None
    weight: int | None = None
    healthy: bool = False
    wait_sessions: bool = False
    deadline_seconds: float = 60
    old_worker_seconds: float = 0

    @property
    def drains(self) -> bool:
        """Whether it is true only once no request is on its way to the server, whichever worker has it."""
        return self.wait_sessions or self.state in ("drain", "maint")


class Control:
    """One server and its other entries at the same address, through the worker's and the master's socket."""

    def __init__(self, worker: Runtime, master: Runtime, wish: Wish) -> None:
        self.worker, self.master, self.wish = worker, master, wish
        self.began = time.monotonic()
        self.orders: list[str] = []
        self.progress: list[dict[str, Any]] = []
        self.before = self.entries()

    def entries(self) -> list[Server]:
        return entries_of(self.worker, self.wish.backend, self.wish.server)

    @property
    def name(self) -> str:
        return f"{self.wish.backend}/{self.wish.server}"

    def plan(self) -> list[str]:
        """The runtime commands that bring the entries from `before` to the wish; none where they are there already."""
        wish = self.wish
        found = []
        for each in self.before:
            if wish.state and each.state != wish.state:
                found.append(f"set server {each.backend}/{each.name} state {wish.state}")
        if wish.weight is not None and self.before[0].weight != wish.weight:
            found.append(f"set server {self.name} weight {wish.weight}")
        return found + self.revival(self.before[0])

    def revival(self, main: Server) -> list[str]:
        """Only what is down is set up: a server that leaves maintenance counts as up until its first probe."""
        return [f"set server {self.name} health up"] if self.wish.healthy and main.status.startswith("DOWN") else []

    def run(self) -> dict[str, Any]:
        """Carries it out. Raises HaproxyError where HAProxy refuses or cannot be read, ControlError at a deadline."""
        if self.wish.drains:
            self.wait_for_old_workers()
        for order in self.plan():
            self.give(order)
        for order in self.revival(self.confirmed()):
            self.give(order)
        if self.wish.wait_sessions:
            self.wait_for_sessions()
        if self.wish.healthy:
            self.wait_for_health()
        return self.result(self.entries())

    def give(self, order: str) -> None:
        if order not in self.orders:
            self.worker.order(order)
            self.orders.append(order)

    def result(self, after: list[Server]) -> dict[str, Any]:
        return {
            "changed": bool(self.orders),
            "orders": self.orders,
            "before": self.facts(self.before),
            "after": self.facts(after),
            "progress": self.progress,
            "waited_s": round(time.monotonic() - self.began, 1),
        }

    def preview(self) -> dict[str, Any]:
        """What run() would do, with nothing done."""
        orders = self.plan()
        after = self.facts(self.before)
        after.update({key: value for key in ("state", "weight") if (value := getattr(self.wish, key)) is not None})
        waits = {
            "until no worker of an earlier configuration is left": self.wish.drains,
            "until no session and nobody in its queue is left": self.wish.wait_sessions,
            "until a probe found it UP": self.wish.healthy,
        }
        return {
            "changed": bool(orders),
            "orders": orders,
            "waits": [text for text, wanted in waits.items() if wanted],
            "before": self.facts(self.before),
            "after": after,
            "progress": [],
            "waited_s": 0.0,
        }

    @staticmethod
    def facts(entries: list[Server]) -> dict[str, Any]:
        """The server's own, with the sessions and queue of all its entries."""
        return {
            **entries[0].facts,
            "sessions": sum(each.sessions for each in entries),
            "queue": sum(each.queue for each in entries),
            "entries": [each.name for each in entries],
        }

    def fail(self, message: str) -> NoReturn:
        raise ControlError(message, self.result(self.entries()))

    def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Looks until it is done; False where it is not after `seconds`."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() >= end:
                return False
            time.sleep(PAUSE)
        return True

    def wait_for_old_workers(self) -> None:
        """Nothing is changed before they are gone: what they serve does not know of a drain in the new worker."""
        if self.until(lambda: not old_workers(self.master), self.wish.old_worker_seconds):
            return
        left = "; ".join(map(str, old_workers(self.master)))
        if left:
            self.fail(
                f"{self.name}: a worker of an earlier reload still serves ({left}) and does not know of a drain: "
                "nothing was changed. Wait for its streams to end (old_worker_seconds; hard-stop-after ends them at "
                f"the latest), or end it: kill -TERM PID. `show proc` on {self.master.path} lists it."
            )

    def confirmed(self) -> Server:
        """The server, once the worker says of it what was ordered. Raises ControlError where it does not."""
        entries = self.entries()
        for each in entries:
            if self.wish.state and each.state != self.wish.state:
                self.fail(
                    f"{each.backend}/{each.name} is {each.state} after 'state {self.wish.state}'. Something else "
                    "changes it, or HAProxy holds it in maintenance (an address that does not resolve)."
                )
        if self.wish.weight is not None and entries[0].weight != self.wish.weight:
            self.fail(f"{self.name} has weight {entries[0].weight} after 'weight {self.wish.weight}'.")
        return entries[0]

    def wait_for_sessions(self) -> None:
        """None is left in this worker, and no reload has taken some along into what is now an old one."""

        def none_left() -> bool:
            now = self.facts(self.entries())
            seen = {"sessions": now["sessions"], "queue": now["queue"], "old_workers": len(old_workers(self.master))}
            last = self.progress[-1] if self.progress else {}
            if any(last.get(key) != value for key, value in seen.items()):
                self.progress.append({"at_s": round(time.monotonic() - self.began, 1), **seen})
            return not any(seen.values())

        if self.until(none_left, self.wish.deadline_seconds):
            return
        last = self.progress[-1]
        self.fail(
            f"{self.name}: {last['sessions']} sessions, {last['queue']} in its queue and {last['old_workers']} workers "
            f"of an earlier reload are left after {self.wish.deadline_seconds:g} s. It stays as it is now. Give them "
            f"longer (deadline_seconds), end the sessions ('shutdown sessions server {self.name}' on "
            f"{self.worker.path}), or set it ready again."
        )

    def wait_for_health(self) -> None:
        def is_healthy() -> bool:
            main = self.entries()[0]
            return main.healthy or not main.checked

        if not self.until(is_healthy, self.wish.deadline_seconds):
            main = self.entries()[0]
            self.fail(
                f"{self.name} is {main.status} (last probe {main.check or 'none'}, weight {main.weight}) after "
                f"{self.wish.deadline_seconds:g} s. Its /ready and its journal say why."
            )


__all__ = ["Control", "ControlError", "HaproxyError", "Runtime", "Wish"]
