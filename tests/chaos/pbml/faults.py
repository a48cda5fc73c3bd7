"""The faults: how each is done and undone. `undo` works from any point: a round that fails half-way undoes it too."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.errors import LabError
from lab.host import Host
from tests.chaos.pbml.platform import Platform

API, WORKER, QDRANT, PGBOUNCER = "pbml", "pbml-worker", "qdrant", "pgbouncer"
EMBEDDINGS = "llamacpp@embed"
_DROP_IN = "/run/systemd/system/{unit}.service.d/chaos.conf"
_CLOCK = "[Service]\nEnvironment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 FAKETIME={by}\n"


@dataclass
class Scene:
    """The platform at the moment of a fault; `victim` is a PBML host that does not lead PostgreSQL."""

    platform: Platform
    leader: str
    chance: random.Random

    def __post_init__(self) -> None:
        self.victim = self.chance.choice([name for name in self.platform.hosts if name != self.leader])

    @property
    def host(self) -> Host:
        return self.platform.host(self.victim)

    def everywhere(self, names: list[str], *command: str) -> None:
        for name in names:
            if self.platform.host(name).powered:
                self.platform.host(name).execute(list(command), check=False)


@dataclass(frozen=True)
class Fault:
    """`hold`: seconds that the fault stays."""

    name: str
    text: str
    do: Callable[[Scene], None]
    undo: Callable[[Scene], None]
    hold: float = 10.0


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


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("none", "nothing happens", nothing, nothing, hold=5),
        Fault("api_killed", "SIGKILL of one host's API, five times", kill(API, one, 5), nothing, hold=2),
        Fault("apis_killed", "SIGKILL of every API at once", kill(API, every), nothing, hold=2),
        Fault("worker_killed", "SIGKILL of one worker, five times at random", kill(WORKER, one, 5), nothing, hold=2),
        Fault("workers_killed", "SIGKILL of all workers, 5 times at random", kill(WORKER, every, 5), nothing, hold=2),
        Fault("workers_stopped", "no worker runs", systemctl("stop", WORKER, every), systemctl("start", WORKER, every)),
        Fault("host_lost", "a host without power that does not lead PostgreSQL", power_off, power_on, hold=15),
        Fault("leader_lost", "PostgreSQL's leader without power: a failover in the middle of ingest",
              power_off_leader, power_on, hold=15),
        Fault("host_frozen", "a host stands still and goes on", freeze, thaw, hold=12),
        Fault("pooler_killed", "SIGKILL of every PgBouncer", kill(PGBOUNCER, every), nothing, hold=3),
        Fault("peer_lost", "a Qdrant peer is stopped", systemctl("stop", QDRANT, one), systemctl("start", QDRANT, one)),
        Fault("qdrant_gone", "every Qdrant peer is stopped",
              systemctl("stop", QDRANT, every_peer), systemctl("start", QDRANT, every_peer)),
        Fault("collection_dropped", "Qdrant's collection is deleted", drop_collection, nothing, hold=5),
        Fault("embeddings_gone", "no host has an embeddings engine",
              systemctl("stop", EMBEDDINGS, every), systemctl("start", EMBEDDINGS, every)),
        Fault("clock_back", "a host's PBML an hour behind the others", step_clock("-3600"), own_clock),
        Fault("clock_ahead", "a host's PBML a day ahead of the others", step_clock("+86400"), own_clock),
    )
}  # fmt: skip
