"""The faults: how each is done and undone. What clients may see of them is in expect.py.

`undo` works from any point: a round that fails in its middle undoes it too.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import LabError
from lab.host import Host
from tests.chaos.postgres import faults as postgres
from tests.chaos.postgres.agents import port
from tests.chaos.postgres.cluster import leader_of, wait_until
from tests.chaos.qwen.deployed import ENGINE, QWEN, Deployed, inside, main_pid, pid_on_machine

RESTART_S = 60.0
FAILOVER_S = 60.0
# The slowed engine runs for so long, and stands still for so long: a twentieth of the time.
RUNS_S, STANDS_S = 0.01, 0.19
PROXY = Path(__file__).with_name("pretended_faulty_engine.py")
PROXY_UNIT, PROXY_PORT, ENGINE_PORT = "pretended-faulty-engine", 18081, port("llamacpp_chat")
PROXY_FILE, PROXY_OUTPUT = f"/run/{PROXY_UNIT}.py", f"/run/{PROXY_UNIT}.out"
# One in 500, the first of them early: a round is shorter than 500 requests of one instance.
ERRS_FIRST, ERRS_EACH = 20, 500
TABLE = "devmentor_chaos"
# Only QWEN's own connections: the proxy's go to the engine.
REDIRECT = f"""
table ip {TABLE} {{
  chain output {{
    type nat hook output priority -100;
    ip daddr 127.0.0.1 tcp dport {ENGINE_PORT} meta skuid "qwen" redirect to :{PROXY_PORT};
  }}
}}
"""


@dataclass
class Scene:
    """A round's platform. `victim`: the host that a fault of one host chose."""

    deployed: Deployed
    chance: random.Random
    victim: Host | None = None
    throttle: Throttle | None = None
    postgres: postgres.Scene | None = None
    notes: list[str] = field(default_factory=list)

    def choose(self, group: str, but: Sequence[str] = ()) -> Host:
        """A host of a group, by the round's seed."""
        names = [name for name in self.deployed.names(group) if name not in but]
        self.victim = self.deployed.lab.host(self.chance.choice(names))
        self.notes.append(self.victim.name)
        return self.victim


@dataclass(frozen=True)
class Fault:
    """`hold`: seconds between the fault and its undoing. `prepare` is done before the clients begin."""

    name: str
    text: str
    do: Callable[[Scene], None]
    undo: Callable[[Scene], None]
    hold: float = 20.0
    prepare: Callable[[Scene], None] | None = None


class Throttle(threading.Thread):
    """Slows a process by stopping it most of the time, as cpulimit does.

    A quota of its unit would not act: the lab's hosts have no control groups of version 2 with a processor controller
    on every machine (docs/lab.md).
    """

    def __init__(self, pid: int, runs_s: float = RUNS_S, stands_s: float = STANDS_S) -> None:
        super().__init__(daemon=True)
        self._pid = os.pidfd_open(pid)  # a number may be another process's after a restart
        self._runs_s, self._stands_s = runs_s, stands_s
        self._over = threading.Event()
        self.lost = False

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._signal(signal.SIGSTOP)
                self._over.wait(self._stands_s)
                self._signal(signal.SIGCONT)
                self._over.wait(self._runs_s)
        except ProcessLookupError:
            self.lost = True
        finally:
            with suppress(ProcessLookupError):
                self._signal(signal.SIGCONT)
            os.close(self._pid)

    def _signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._pid, number)

    def end(self) -> None:
        self._over.set()
        self.join()


def nothing(_scene: Scene) -> None:
    """A round without a fault, or one that is undone by itself."""


def kill_and_keep_down(hosts: Sequence[Host], *units: str) -> None:
    """SIGKILL, and a stop before systemd starts it again."""
    for host in hosts:
        for unit in units:
            host.execute(["sh", "-c", f"systemctl kill --signal KILL {unit}; systemctl stop {unit}"], timeout=60)


def start_again(hosts: Sequence[Host], *units: str) -> None:
    for host in hosts:
        for unit in units:
            host.execute(["systemctl", "reset-failed", unit], check=False)
            host.execute(["systemctl", "start", "--no-block", unit])


def kill_and_let_restart(host: Host, unit: str) -> None:
    """SIGKILL; systemd starts it again. Raises LabError where that takes longer than `RESTART_S`."""
    before = main_pid(host, unit)
    if not before:
        raise LabError(f"{host.name}: {unit} does not run", f"lab exec {host.name} -- systemctl start {unit}")
    host.execute(["systemctl", "kill", "--signal", "KILL", unit])

    def away() -> str:
        now = main_pid(host, unit)
        state = inside(host, ["systemctl", "show", "--property", "ActiveState", "--value", unit]).strip()
        return "" if now not in (0, before) and state == "active" else f"{unit} is {state}, process {now}"

    if why := wait_until(away, RESTART_S)[1]:
        raise LabError(f"{host.name}: {why} {RESTART_S:.0f} s after SIGKILL", f"journalctl -u {unit}")


def freeze_engine(scene: Scene) -> None:
    scene.choose("qwen").execute(["systemctl", "kill", "--signal", "STOP", ENGINE])


def thaw_engine(scene: Scene) -> None:
    if scene.victim is not None:
        scene.victim.execute(["systemctl", "kill", "--signal", "CONT", ENGINE], check=False)


def slow_engine(scene: Scene) -> None:
    scene.throttle = Throttle(pid_on_machine(scene.choose("qwen"), ENGINE))
    scene.throttle.start()


def let_engine_run(scene: Scene) -> None:
    if scene.throttle is not None:
        scene.throttle.end()
        if scene.throttle.lost:
            raise LabError("the slowed engine's process ended while it was slowed", f"journalctl -u {ENGINE}")


def put_proxies(scene: Scene) -> None:
    """Before each engine a pretended one that hands everything on, until it is told to err.

    QWEN's open connections are the engine's still: its restart ends them.
    """
    for host in scene.deployed.hosts("qwen"):
        # Of a run that was killed in its middle.
        host.execute(["nft", "delete", "table", "ip", TABLE], check=False)
        host.execute(["systemctl", "stop", PROXY_UNIT], check=False)
        host.execute(["tee", PROXY_FILE], stdin=PROXY.read_text())
        command = ["python3", PROXY_FILE, str(PROXY_PORT), str(ENGINE_PORT), str(ERRS_FIRST), str(ERRS_EACH)]
        output = f"--property=StandardOutput=truncate:{PROXY_OUTPUT}"
        host.execute(["systemd-run", "--quiet", "--collect", f"--unit={PROXY_UNIT}", output, *command])
        tries = ["--retry", "20", "--retry-delay", "1", "--retry-connrefused"]
        url = f"http://127.0.0.1:{PROXY_PORT}/health"
        host.execute(["curl", "--silent", "--fail", *tries, "--output", "/dev/null", url], timeout=60)
        host.execute(["nft", "-f", "-"], stdin=REDIRECT)
        host.execute(["systemctl", "restart", ENGINE], timeout=120)


def let_proxies_err(scene: Scene) -> None:
    for host in scene.deployed.hosts("qwen"):
        host.execute(["systemctl", "kill", "--signal", "USR1", PROXY_UNIT])


def take_proxies_away(scene: Scene) -> None:
    """Raises LabError where none of them erred: then the round shows nothing."""
    hosts = scene.deployed.hosts("qwen")
    for host in hosts:
        # New connections go past it. Without the chain those it has redirected lose their translation: silence.
        host.execute(["nft", "flush", "chain", "ip", TABLE, "output"], check=False)
    time.sleep(5)  # requests that go through them still
    errors = 0
    for host in hosts:
        host.execute(["nft", "delete", "table", "ip", TABLE], check=False)
        host.execute(["systemctl", "stop", PROXY_UNIT], check=False)
        said = [line for line in inside(host, ["cat", PROXY_OUTPUT]).splitlines() if line.startswith("errors ")]
        errors += sum(int(line.split()[1]) for line in said)
        host.execute(["rm", "-f", PROXY_FILE, PROXY_OUTPUT], check=False)
    scene.notes.append(f"{errors} errors pretended")
    if not errors:
        raise LabError("no pretended engine erred", "longer rounds or a higher --rate")


def fail_postgres_over(scene: Scene) -> None:
    """Every process of the primary is killed and its unit masked; another server is promoted meanwhile."""
    cluster = scene.deployed.cluster
    leader = leader_of(cluster.views())
    if not leader:
        raise LabError("PostgreSQL has no leader before the fault", "make pg-status")
    scene.notes.append(leader)
    scene.postgres = postgres.Scene(scene.deployed.lab, cluster.nodes, cluster.poolers, leader, scene.chance)
    postgres.kill_postgres(scene.postgres)

    def nobody() -> str:
        return "" if leader_of(cluster.views()) not in ("", leader) else f"nobody but {leader} leads"

    if why := wait_until(nobody, FAILOVER_S)[1]:
        raise LabError(f"{why} {FAILOVER_S:.0f} s after the primary was killed", "make pg-status")


def unblock_postgres(scene: Scene) -> None:
    if scene.postgres is not None:
        postgres.unblock_postgres(scene.postgres)


def power_off_gateway(scene: Scene) -> None:
    scene.victim = scene.deployed.address_holder()
    scene.notes.append(scene.victim.name)
    scene.victim.kill()


def power_on(scene: Scene) -> None:
    if scene.victim is not None and not scene.victim.powered:
        scene.deployed.lab.up(scene.victim.name)


def kill_gateway(scene: Scene) -> None:
    holder = scene.deployed.address_holder()
    scene.notes.append(holder.name)
    kill_and_let_restart(holder, "haproxy.service")


def kill_qwen(scene: Scene) -> None:
    """Not beside the gateway, whose processor time its return would take."""
    kill_and_let_restart(scene.choose("qwen", but=[scene.deployed.address_holder().name]), QWEN)


def _dead(name: str, text: str, group: str, *units: str, one: bool = False) -> Fault:
    def hosts(scene: Scene) -> list[Host]:
        if not one:
            return scene.deployed.hosts(group)
        return [scene.victim or scene.choose(group)]

    def undo(scene: Scene) -> None:
        if not one or scene.victim is not None:
            start_again(hosts(scene), *units)

    return Fault(name, text, lambda scene: kill_and_keep_down(hosts(scene), *units), undo)


def _all(*found: Fault) -> dict[str, Fault]:
    return {fault.name: fault for fault in found}


FAULTS = _all(
    Fault("none", "nothing: what the checker says of a platform that is well", nothing, nothing),
    Fault("engine_killed", "an engine is killed; systemd starts it again",
          lambda s: kill_and_let_restart(s.choose("qwen"), ENGINE), nothing, hold=0.0),
    Fault("engine_frozen", "an engine stands still for 20 s, its port open", freeze_engine, thaw_engine),
    Fault("engine_slowed", "an engine gets a twentieth of the time for 20 s", slow_engine, let_engine_run),
    Fault("engine_erring", "every engine answers one request in 500 with an error (pretended, in front of it)",
          let_proxies_err, take_proxies_away, hold=90.0, prepare=put_proxies),
    _dead("engines_dead", "all engines are killed and stay down for 20 s", "qwen", ENGINE),
    _dead("valkey_one", "one Valkey is killed and stays down for 20 s", "cache", "valkey-server.service", one=True),
    _dead("valkey_all", "all of Valkey is down for 20 s", "cache", "valkey-server.service"),
    _dead("qdrant_one", "one Qdrant peer is killed and stays down for 20 s", "qdrant", "qdrant.service", one=True),
    _dead("qdrant_all", "all Qdrant peers are down for 20 s", "qdrant", "qdrant.service"),
    _dead("pbml_one", "one PBML replica is killed, its worker too, and stays down for 20 s",
          "pbml", "pbml.service", "pbml-worker.service", one=True),
    _dead("pbml_all", "all of PBML is down for 20 s", "pbml", "pbml.service", "pbml-worker.service"),
    Fault("postgres", "PostgreSQL's primary is killed and stays down; another server takes over",
          fail_postgres_over, unblock_postgres, hold=10.0),
    Fault("qwen_killed", "a QWEN instance is killed; systemd starts it again", kill_qwen, nothing, hold=0.0),
    Fault("gateway_killed", "HAProxy is killed where the address is; systemd starts it again",
          kill_gateway, nothing, hold=0.0),
    Fault("gateway_host", "the host that has the address loses power for 40 s, with all that is on it",
          power_off_gateway, power_on, hold=40.0),
)  # fmt: skip
