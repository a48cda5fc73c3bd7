"""The faults: how each is done and undone, and what is expected of the cluster meanwhile.

A fault gets the `Scene` of its round. `undo` works from any point: a round that fails in its middle undoes it too.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import disk, faults
from lab.errors import LabError
from lab.host import Host
from lab.lifecycle import Lab
from tests.chaos.postgres.agents import call
from tests.chaos.postgres.cluster import views, wait_until, without

FAILOVER = "failover"
GOES_ON = "goes on"
BLOCKS = "blocks"
SAME_LEADER = "same leader"
RESUMES = "resumes"
"""Writes come back, whoever leads: what the right outcome is depends on who was first."""

EXPECTATIONS = (FAILOVER, GOES_ON, BLOCKS, SAME_LEADER, RESUMES)
DATA = "/var/lib/postgresql"
UNIT = "postgresql@17-main.service"
SHRINK_SECONDS = 45.0


@dataclass
class Scene:
    """A cluster at the moment of its fault. `followers` come in an order that the round's seed shuffled."""

    lab: Lab
    nodes: list[str]
    outside: list[str]
    """The poolers (or the proxy): what clients go through."""
    leader: str
    chance: random.Random
    followers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.followers = without(self.nodes, self.leader)
        self.chance.shuffle(self.followers)

    def host(self, name: str) -> Host:
        return self.lab.host(name)

    def hosts(self, names: list[str]) -> list[Host]:
        return [self.lab.host(name) for name in names]

    @property
    def others(self) -> list[str]:
        return [*self.followers, *self.outside]


@dataclass(frozen=True)
class Fault:
    """`hold`: seconds that the fault stays at least; where a failover is expected it also stays until there was one."""

    name: str
    text: str
    expect: str
    do: Callable[[Scene], None]
    undo: Callable[[Scene], None]
    hold: float = 3.0
    flawless: bool = False
    """Whether no statement may fail."""


def power_off(scene: Scene, *names: str) -> None:
    for host in scene.hosts(list(names)):
        host.kill()


def power_on(scene: Scene) -> None:
    off = [name for name in scene.nodes if not scene.host(name).powered]
    if off:
        scene.lab.up(",".join(off))


def freeze(scene: Scene) -> None:
    scene.host(scene.leader).group.freeze(True)


def thaw(scene: Scene) -> None:
    scene.host(scene.leader).group.freeze(False)


def heal(scene: Scene) -> None:
    faults.heal(scene.lab.names)


def processes(host: Host, name: str) -> dict[int, int]:
    """Process id on the machine -> parent, of a host's processes of that name."""
    found = {}
    for pid in host.group.processes():
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
            if fields["Name"] == name:
                found[pid] = int(fields["PPid"])
    return found


def postmaster(host: Host) -> int:
    """The postmaster's process id on the machine: the one process of PostgreSQL whose parent is none of its own."""
    found = processes(host, "postgres")
    heads = [pid for pid, parent in found.items() if parent not in found]
    if len(heads) != 1:
        raise LabError(f"{host.name} runs {len(heads)} PostgreSQL servers, one is expected", "lab exec HOST -- ps -ef")
    return heads[0]


def kill_postgres(scene: Scene) -> None:
    """Every process of PostgreSQL at once, and its unit masked so that nothing starts it again."""
    host = scene.host(scene.leader)
    host.execute(["systemctl", "mask", "--runtime", UNIT])
    for pid in processes(host, "postgres"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def unblock_postgres(scene: Scene) -> None:
    host = scene.host(scene.leader)
    host.execute(["systemctl", "unmask", "--runtime", UNIT])
    host.execute(["systemctl", "reset-failed", UNIT], check=False)
    # Only where the agent does not: an operator who removed the obstacle would.
    host.execute(["systemctl", "start", "--no-block", UNIT])


def fill_disk(scene: Scene) -> None:
    disk.fill(scene.host(scene.leader), DATA, 0)


def empty_disk(scene: Scene) -> None:
    disk.unfill(scene.host(scene.leader), DATA)
    host = scene.host(scene.leader)
    host.execute(["systemctl", "reset-failed", UNIT], check=False)
    host.execute(["systemctl", "start", "--no-block", UNIT])


def stop_postmaster(scene: Scene) -> None:
    os.kill(postmaster(scene.host(scene.leader)), signal.SIGSTOP)


def continue_postmaster(scene: Scene) -> None:
    for pid in processes(scene.host(scene.leader), "postgres"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def cut_off(scene: Scene) -> None:
    faults.isolate(scene.host(scene.leader))


def cut_between(scene: Scene, here: list[str], there: list[str], one_way: bool = False) -> None:
    faults.cut(scene.hosts(here), scene.hosts(there), one_way=one_way)


def smaller_side(scene: Scene) -> None:
    """The leader keeps one follower; the poolers are with the other two."""
    cut_between(scene, [scene.leader, scene.followers[0]], [*scene.followers[1:], *scene.outside])


def beside_the_leader(scene: Scene) -> None:
    """The leader keeps one pooler, and the clients that it has, but no follower."""
    mine = scene.chance.choice(scene.outside)
    cut_between(scene, [scene.leader, mine], [n for n in scene.others if n != mine])


def two_followers_in_turn(scene: Scene) -> None:
    """The second is lost once the rule counts without the first."""
    first, second = scene.followers[:2]
    power_off(scene, first)

    def still_counted() -> str:
        seen = views(scene.lab, [scene.leader])
        rule = seen[scene.leader].rule if seen else None
        return f"the rule is {rule}" if rule is None or first in rule["followers"] else ""

    _, why = wait_until(still_counted, SHRINK_SECONDS)
    if why:
        raise LabError(f"{scene.leader} still counts {first} {SHRINK_SECONDS:.0f} s after its loss: {why}")
    power_off(scene, second)


def return_in_the_middle(scene: Scene) -> None:
    """The old leader boots while the others replace it."""
    power_off(scene, scene.leader)
    time.sleep(scene.chance.uniform(0, 3))
    scene.lab.up(scene.leader)


def leader_and_an_agent(scene: Scene) -> None:
    """The agents of two followers die with the leader: one of them may be the controller. systemd starts them again."""
    power_off(scene, scene.leader)
    for name in scene.followers[:2]:
        for pid in agents(scene.host(name)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def switch(scene: Scene) -> None:
    """As an operator asks for it, at a follower's agent: the leader's stops with its server."""
    target = scene.followers[0]
    answer = call(scene.host(target), "switchover", {"target": target}, seconds=60)
    if answer.get("outcome") != "done":
        raise LabError(f"switchover to {target}: {answer}", "journalctl -u pgagent")


def fence(scene: Scene, names: list[str], controller: str) -> tuple[int, dict[str, Any]]:
    """Fence followers as a controller would that is killed right after. The epoch, and the newest rule."""
    epoch = 1 + max(call(scene.host(name), "status")["promise"]["epoch"] for name in scene.followers)
    answers = [call(scene.host(name), "fence", {"epoch": epoch, "controller": controller}) for name in names]
    return epoch, answers[0]["rules"][-1]


def false_alarm(scene: Scene) -> None:
    """A failover that ends after its fence, while the leader lives."""
    fence(scene, scene.followers[:2], "chaos/false-alarm")


def twin_timelines(scene: Scene) -> None:
    """A follower is promoted, and dies before anybody follows it; the leader is reaffirmed, and dies too.

    The next leader's timeline has the same number as the first one's, from the same fork: pg_rewind sees no difference.
    """
    first, controller = scene.followers[0], "chaos/twin"
    epoch, old = fence(scene, scene.followers, controller)
    others = sorted(set(scene.followers) - {first})
    prior = {"prior_epoch": old["epoch"], "prior_sub": old["sub"]}
    rule = {"epoch": epoch, "sub": 0, "leader": first, "followers": others, "w": 1, "removed": [], **prior}
    need = {"count": 1, "among": ["nobody"]}
    body = {"epoch": epoch, "controller": controller, "rule": rule, "need": need, "fenced": [first]}
    call(scene.host(first), "lead", body)
    _until(scene, first, lambda status: status["postgres"].get("in_recovery") is False, "promoted")
    power_off(scene, first)
    _until(scene, scene.leader, lambda status: (status["leading"] or {}).get("epoch", 0) > epoch, "reaffirmed")
    power_off(scene, scene.leader)


def _until(scene: Scene, name: str, reached: Callable[[dict[str, Any]], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not reached(call(scene.host(name), "status")):
        if time.monotonic() > deadline:
            raise LabError(f"{name} was not {what} within 30 s", "journalctl -u pgagent")
        time.sleep(0.2)


def nothing(scene: Scene) -> None:
    """It is undone by itself."""


def agents(host: Host) -> list[int]:
    """Process ids of the failover agent, on the machine."""
    found = []
    for pid in host.group.processes():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"devmentor-pgagent") for word in words):
                found.append(pid)
    return found


def _all(*found: Fault) -> dict[str, Fault]:
    return {fault.name: fault for fault in found}


FAULTS = _all(
    Fault("power_cut", "the leader's host loses power", FAILOVER, lambda s: power_off(s, s.leader), power_on),
    Fault("freeze", "every process of the leader's host stands still", FAILOVER, freeze, thaw),
    Fault("kill_postgres", "PostgreSQL is killed and does not start again", FAILOVER, kill_postgres, unblock_postgres),
    Fault("disk_full", "the leader's disk is full", FAILOVER, fill_disk, empty_disk),
    Fault("cut_off", "the leader is cut off from everything; a client sits on its host", FAILOVER, cut_off, heal, 8.0),
    Fault("smaller_side", "the leader is left with one follower", FAILOVER, smaller_side, heal, 8.0),
    Fault("beside", "the leader and one pooler are cut off together", FAILOVER, beside_the_leader, heal, 8.0),
    Fault("postmaster", "the leader's postmaster alone stands still", FAILOVER, stop_postmaster, continue_postmaster),
    Fault(
        "one_way_out", "what the leader sends is lost", FAILOVER,
        lambda s: cut_between(s, [s.leader], s.others, one_way=True), heal,
    ),
    Fault(
        "one_way_in", "what is sent to the leader is lost", FAILOVER,
        lambda s: cut_between(s, s.others, [s.leader], one_way=True), heal,
    ),
    Fault("follower", "one follower loses power", GOES_ON, lambda s: power_off(s, s.followers[0]), power_on, 15.0),
    Fault("followers_in_turn", "two followers lose power one after the other", GOES_ON, two_followers_in_turn,
          power_on, 8.0),
    Fault("followers_at_once", "two followers lose power at once", BLOCKS, lambda s: power_off(s, *s.followers[:2]),
          power_on, 12.0),
    Fault("all_off", "all servers lose power and get it back", SAME_LEADER, lambda s: power_off(s, *s.nodes), power_on),
    Fault("return", "the leader loses power and boots in the middle of its replacement", RESUMES, return_in_the_middle,
          power_on),
    Fault("controller", "the leader loses power, and agents of two followers are killed", FAILOVER, leader_and_an_agent,
          power_on),
    Fault("false_alarm", "two followers are fenced for nothing", SAME_LEADER, false_alarm, nothing),
    Fault("twin_timelines", "two nodes are promoted to one timeline number", FAILOVER, twin_timelines, power_on),
    Fault("switchover", "a planned change of the leader", FAILOVER, switch, nothing, 3.0, flawless=True),
)  # fmt: skip
