"""What faults are made of: the scene, and what may be done to its hosts. Undoing works from any point."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab.errors import LabError
from lab.host import Host
from tests.chaos.pbml.attempts import ACKNOWLEDGED, History, Write
from tests.chaos.pbml.platform import Platform
from tests.chaos.pbml.replicas import API as API_PORT
from tests.chaos.pbml.replicas import Answer, value

API, WORKER, QDRANT, PGBOUNCER = "pbml", "pbml-worker", "qdrant", "pgbouncer"
EMBEDDINGS = "llamacpp@embed"
_DROP_IN = "/run/systemd/system/{unit}.service.d/chaos.conf"
_CLOCK = "[Service]\nEnvironment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 FAKETIME={by}\n"


@dataclass
class Scene:
    """The platform at the moment of a fault; `victim` is a PBML host that does not lead PostgreSQL.

    `run` begins every id of the round, `history` is its clients', `notes` go into its record, and `before` are counters
    as they were before the fault.
    """

    platform: Platform
    leader: str
    chance: random.Random
    run: str = ""
    history: History = field(default_factory=History)
    notes: dict[str, Any] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.victim = self.chance.choice([name for name in self.platform.hosts if name != self.leader])
        self.others = [name for name in self.platform.hosts if name != self.victim]
        self._written = 0

    @property
    def host(self) -> Host:
        return self.platform.host(self.victim)

    def everywhere(self, names: list[str], *command: str) -> None:
        for name in names:
            if self.platform.host(name).powered:
                self.platform.host(name).execute(list(command), check=False)

    def draft(self, subject: str) -> Write:
        """A document's version that the fault itself writes, in the history as the clients' are."""
        self._written += 1
        token = f"zqf{self._written}x{self.chance.randrange(16**6):06x}"
        write = Write("document", subject, token, f"The word of this text is {token}.", time.monotonic())
        self.history.writes.append(write)
        return write

    def send(self, write: Write, name: str, key: str) -> Answer:
        """To one replica, once."""
        body = {"id": write.subject, "text": write.text}
        return self.platform.replicas.call(name, "POST", "/v1/documents", body, {"Idempotency-Key": key})

    def write(self, name: str, subject: str) -> Write:
        """A document's next version through one replica. One that was not acknowledged may be there or not."""
        write = self.draft(subject)
        self.deliver(write, name)
        return write

    def deliver(self, write: Write, name: str) -> None:
        """A draft through one replica."""
        settle(write, self.send(write, name, write.token))

    def counted(self, note: str, metric: str, service: str = API_PORT, /, **labels: str) -> float:
        """How far a counter of the victim is above `before[note]`; 0 where it can not be read."""
        found = self.platform.replicas.metrics(self.victim, service) or {}
        return value(found, metric, **labels) - self.before.get(note, 0.0)


def settle(write: Write, answer: Answer) -> None:
    """Note in a write what it was told."""
    if answer.status == 202:
        write.outcome, write.watermark = ACKNOWLEDGED, str(answer.json["watermark"])
    write.detail = f"{answer.status} {answer.text[:200]}"
    write.end = time.monotonic()


def nothing(_scene: Scene) -> None:
    """Heals by itself, or the platform mends it."""


def kill(unit: str, names: Callable[[Scene], list[str]], times: int = 1) -> Callable[[Scene], None]:
    """SIGKILL to every process of a unit; several times at random moments, so that every stage is hit."""

    def do(scene: Scene) -> None:
        for _ in range(times):
            scene.everywhere(names(scene), "systemctl", "kill", "--signal=SIGKILL", unit)
            if times > 1:
                time.sleep(scene.chance.uniform(1.5, 4.0))

    return do


def systemctl(verb: str, unit: str, names: Callable[[Scene], list[str]]) -> Callable[[Scene], None]:
    return lambda scene: scene.everywhere(names(scene), "systemctl", verb, "--no-block", unit)


def one(scene: Scene) -> list[str]:
    return [scene.victim]


def every(scene: Scene) -> list[str]:
    return scene.platform.hosts


def every_peer(scene: Scene) -> list[str]:
    return scene.platform.qdrant


def power_off(scene: Scene) -> None:
    scene.host.kill()


def power_off_leader(scene: Scene) -> None:
    scene.platform.host(scene.leader).kill()


def power_on(scene: Scene) -> None:
    off = [name for name in scene.platform.cluster.nodes if not scene.platform.host(name).powered]
    if off:
        scene.platform.lab.up(",".join(off))


def freeze(scene: Scene) -> None:
    scene.host.group.freeze(True)


def thaw(scene: Scene) -> None:
    scene.host.group.freeze(False)


def drop_collection(scene: Scene) -> None:
    if not scene.platform.qdrant_call("DELETE", ""):
        raise LabError("no Qdrant peer took the order to drop the collection", "lab exec HOST -- journalctl -u qdrant")


def step_clock(by: str) -> Callable[[Scene], None]:
    """The API and the worker of one host live in another time (libfaketime); the other hosts do not."""

    def do(scene: Scene) -> None:
        scene.host.execute(["apt-get", "install", "-y", "-q", "libfaketime"])
        for unit in (API, WORKER):
            path = _DROP_IN.format(unit=unit)
            script = (
                f"mkdir -p $(dirname {path}) && cat > {path} && systemctl daemon-reload && systemctl restart {unit}"
            )
            scene.host.execute(["sh", "-c", script], stdin=_CLOCK.format(by=by))

    return do


def own_clock(scene: Scene) -> None:
    for unit in (API, WORKER):
        path = _DROP_IN.format(unit=unit)
        scene.host.execute(
            ["sh", "-c", f"rm -f {path}; systemctl daemon-reload; systemctl restart {unit}"], check=False
        )
