"""The faults of a roll: how each is done and undone. What each may cost is in expect.py.

`undo` works from any point: a round that fails in its middle undoes it too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab import disk
from lab.errors import LabError
from lab.host import Host
from tests.bench.rolling.load import Load
from tests.chaos.postgres.cluster import leader_of
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.rollout.expect import STRUCK
from tests.chaos.rollout.journal import Document, Moment, last, moment, untrue
from tests.chaos.rollout.rolls import Keepers, Roll, releases, until

TIER = "qwen"
RELEASES = "/opt/devmentor"
VOLUME_MIB = 4096
# Everything that may have files of a release open.
UNITS = tuple(f"{name}.service" for name in ("qwen", "pbml", "pbml-worker", "llamacpp@*", "pgagent"))
PROMETHEUS = "prometheus.service"
ROLL_S, REFUSED_S = 3600.0, 900.0
# A killed roll's modules go on in the hosts for a moment.
LINGERS_S = 8.0
SCRAPED_S = 60.0


@dataclass
class Scene:
    """A round. `variables` are those of its rolls, `old` is the release that every host has before it."""

    deployed: Deployed
    keepers: Keepers
    load: Load
    variables: dict[str, str]
    old: str
    chance: random.Random
    folder: Path
    victim: Host | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rolls: int = 0

    def roll(self, playbook: str = "rolling_update", **more: str) -> Roll:
        """Starts one."""
        self.rolls += 1
        variables = {"tier": TIER, **self.variables, **more}
        return Roll(self.deployed.inventory, playbook, variables, self.folder / f"{self.rolls}-{playbook}.log").start()

    def choose(self, but: set[str]) -> Host:
        """A QWEN host, by the round's seed; neither one of `but` nor the gateway that has the address."""
        avoided = {*but, self.deployed.address_holder().name}
        names = [name for name in self.deployed.names(TIER) if name not in avoided]
        if not names:
            raise LabError("no QWEN host is left for the fault", "a larger inventory")
        self.victim = self.deployed.lab.host(self.chance.choice(names))
        self.notes.append(self.victim.name)
        return self.victim

    def strike(self) -> None:
        """Remembers the moment of the fault."""
        self.load.mark(STRUCK)

    def reached(self, host: str, phase: str) -> bool:
        """Whether the journal has that entry of this roll as the host's last."""
        found = self.keepers.journal() or {}
        return found.get("state") == "running" and last(found).get((TIER, host)) == phase

    def check_journal(self, when: str) -> Document:
        """Compares the journal with the hosts; what is not so is a problem."""
        found = self.keepers.journal()
        current = releases(self.deployed, TIER)
        self.problems += [f"{when}: {line}" for line in untrue(found, TIER, current, self.old)]
        return found or {}


def struck_at(phase: str, do: Callable[[Scene], None]) -> Callable[[Scene], Roll]:
    """A roll that is struck once the journal says that the victim, or any host, has reached a phase."""

    def run(scene: Scene) -> Roll:
        roll = scene.roll()
        hosts = [scene.victim.name] if scene.victim is not None else scene.deployed.names(TIER)
        if until(roll, lambda: any(scene.reached(host, phase) for host in hosts), ROLL_S):
            scene.strike()
            do(scene)
        else:
            scene.problems.append(f"the roll ended before {', '.join(hosts)} was {phase}: nothing was struck")
        return roll

    return run


def rolled(scene: Scene) -> Roll:
    """A roll to a release that is a fault itself, or none."""
    scene.strike()
    return scene.roll()


def nothing(_scene: Scene) -> None:
    """Nothing to prepare, to do or to undo."""


def choose_any(scene: Scene) -> None:
    scene.choose(but=set())


def power_off(scene: Scene) -> None:
    assert scene.victim is not None
    scene.victim.kill()


def power_on(scene: Scene) -> None:
    if scene.victim is not None and not scene.victim.powered:
        scene.deployed.lab.up(scene.victim.name)


def stop_prometheus(scene: Scene) -> None:
    for host in scene.deployed.hosts("monitoring"):
        host.execute(["systemctl", "stop", PROMETHEUS], timeout=60)


def start_prometheus(scene: Scene) -> None:
    for host in scene.deployed.hosts("monitoring"):
        host.execute(["systemctl", "start", PROMETHEUS], timeout=60)
    time.sleep(SCRAPED_S)


def make_volume(scene: Scene) -> None:
    """The victim's releases move to a disk of their own, under stopped services.

    Not on PostgreSQL's leader, whose agent is stopped, too; nor on the canary, with which a roll ends otherwise.
    """
    host = scene.choose(but={leader_of(scene.deployed.cluster.views()), scene.deployed.names("qwen")[0]})
    if RELEASES in disk.volumes(host):
        return
    listed = host.execute(["systemctl", "list-units", "--plain", "--no-legend", "--state=active", *UNITS]).stdout
    units = [line.split()[0] for line in listed.splitlines() if line.strip()]
    host.execute(["systemctl", "stop", *units], timeout=120)
    try:
        disk.fill(host, RELEASES, VOLUME_MIB)
    finally:
        host.execute(["systemctl", "start", *units], timeout=120)


def fill_disk(scene: Scene) -> None:
    assert scene.victim is not None
    disk.fill(scene.victim, RELEASES)


def empty_disk(scene: Scene) -> None:
    if scene.victim is not None and RELEASES in disk.volumes(scene.victim):
        disk.unfill(scene.victim, RELEASES)


def killed_everywhere(scene: Scene) -> Roll:
    """The control node is killed once at every entry of the journal, and the roll gone on with each time."""
    killed: set[Moment] = set()
    taken = ""
    scene.strike()
    while True:
        before = scene.keepers.journal() or {}
        roll = scene.roll(**({"rollout_take_over": taken} if taken else {}))

        def now(before: Document = before, taken: str = taken) -> Moment:
            run = scene.keepers.lock()[0]
            # Until it has taken it over, the lock is the dead roll's.
            return moment(scene.keepers.journal(), "" if run == taken else run, before)

        if not until(roll, lambda now=now: now() not in {*killed, ("", "", "")}, ROLL_S):
            scene.notes.append(f"killed {len(killed)} times")
            return roll
        at = now()
        # Also in the middle of what comes after an entry.
        time.sleep(scene.chance.uniform(0.0, 6.0))
        # Past its end there is nothing to go on with.
        if not roll.running or not scene.keepers.lock()[0]:
            return roll
        killed.add(at)
        roll.kill()
        time.sleep(LINGERS_S)
        taken, owner = scene.keepers.lock()
        name = " ".join(word for word in at if word)
        if not taken or not owner:
            scene.problems.append(f"killed at {name}: the lock does not say whose it was")
        if at[2] != "locked" and scene.check_journal(f"killed at {name}").get("state") not in ("running", "failed"):
            scene.problems.append(f"killed at {name}: the journal does not say that the roll is open")


def second_roll(scene: Scene) -> None:
    """The same roll from somewhere else: refused, with the owner and the age of the first one's lock."""
    run, owner = scene.keepers.lock()
    second = scene.roll(rollout_owner="somebody-else")
    status = second.wait(REFUSED_S)
    if scene.keepers.lock()[0] != run:
        scene.problems.append("the first roll ended before the second one was refused: nothing was shown")
    elif not status:
        scene.problems.append("the second roll was not refused")
    said = " ".join(second.output.split())
    scene.problems += [
        f"the second roll's refusal does not say {word!r}: {second.tail(5)}"
        for word in (run, owner, "has held it for")
        if word not in said
    ]


@dataclass(frozen=True)
class Fault:
    """`release`: how the release misbehaves that is rolled to; empty for a good one. `prepare` is done before the load
    begins; `run` starts the roll and strikes it."""

    name: str
    text: str
    run: Callable[[Scene], Roll]
    undo: Callable[[Scene], None] = nothing
    release: str = ""
    prepare: Callable[[Scene], None] = nothing


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("none", "nothing: what the checker says of a roll that goes well", rolled),
        Fault("never_ready", "a release that never gets ready", rolled, release="never_ready"),
        Fault("erring", "a release that gets ready, passes its gate and then errs", rolled, release="erring"),
        Fault("slow", "a release that is healthy and 3 s slower", rolled, release="slow"),
        Fault("host_lost", "a host loses power while it is drained",
              struck_at("drained", power_off), power_on, prepare=choose_any),
        Fault("control_killed", "the control node is killed at every entry of the journal", killed_everywhere),
        Fault("prometheus_away", "every Prometheus is stopped when the first host's turn begins",
              struck_at("began", stop_prometheus), start_prometheus),
        Fault("second_roll", "a second roll is started meanwhile", struck_at("began", second_roll)),
        Fault("disk_full", "no room is left for the release on a drained host",
              struck_at("drained", fill_disk), empty_disk, prepare=make_volume),
    )
}  # fmt: skip
