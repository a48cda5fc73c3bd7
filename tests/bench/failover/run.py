"""`make bench-failover`: this platform's failover and its peer's, one after the other, by the same clients.

    python -m tests.bench.failover.run --rounds 20 --peer-rounds 10 [--systems devmentor,patroni-default,patroni-tight]

For each system and round: the primary's host loses power; a planned switchover. For the platform also the floor of a
switchover: what pausing the poolers, leading them to another host and resuming costs without any failover. Rounds are
appended to .cache/bench/failover-bench.jsonl; docs/postgres-ha-bench.md is written from it (report.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lab.errors import LabError
from lab.host import Host
from tests.bench.failover import peer, report
from tests.chaos.postgres.cluster import Cluster, Target, as_owner
from tests.chaos.postgres.faults import FAILOVER, FAULTS, GOES_ON, Fault, Scene
from tests.chaos.postgres.rounds import NotWhole, play
from tests.chaos.postgres.run import EVIDENCE, INVENTORY, append, commit, deploy, line
from tools.runs import ROOT, RunError, lab

RESULTS = ROOT / ".cache" / "bench" / "failover-bench.jsonl"
SYSTEMS = ("devmentor", "patroni-default", "patroni-tight")
TARGETS = "/etc/pgbouncer/targets.ini"


def pooler(host: Host, script: str) -> str:
    """Commands of PgBouncer's console, which lets the owner of its process in by the socket. Raises LabError."""
    console = ["psql", "-XAtq", "-h", "/var/run/postgresql", "-p", "6432", "-U", "pgbouncer", "-d", "pgbouncer"]
    command = ["timeout", "10", *as_owner(host), *console, "-v", "ON_ERROR_STOP=1"]
    return host.execute(command, stdin=script, timeout=12).stdout


def each_pooler(scene: Scene, action: Callable[[Host], object]) -> None:
    """On all at once."""
    hosts = scene.hosts(scene.outside)
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(action, hosts))


def reroute(scene: Scene) -> None:
    """Pause, lead to the same server under another name, which is a new host to PgBouncer, resume; on all poolers."""
    edit = f"sed -i.before 's/host={scene.host(scene.leader).address} /host={scene.leader} /' {TARGETS}"
    each_pooler(scene, lambda host: host.execute(["systemctl", "stop", "pgagent.service"]))
    each_pooler(scene, lambda host: pooler(host, f"PAUSE;\n\\! {edit}\nRELOAD;\nRESUME;\n"))
    for host in scene.hosts(scene.outside):
        if f"devmentor|{scene.leader}|" not in (shown := pooler(host, "SHOW DATABASES;\n")):
            raise LabError(f"{host.name} does not lead to {scene.leader}: {shown}", f"see {TARGETS} and its journal")


def route_back(scene: Scene) -> None:
    each_pooler(scene, lambda host: host.execute(["mv", f"{TARGETS}.before", TARGETS]))
    each_pooler(scene, lambda host: pooler(host, "RELOAD;\n"))
    each_pooler(scene, lambda host: host.execute(["systemctl", "start", "pgagent.service"]))


FLOOR = Fault("floor", "PAUSE, RELOAD to another host, RESUME, without a failover", GOES_ON, reroute, route_back, 3.0)


def systems(names: list[str]) -> Iterator[tuple[str, Target, list[str], list[Fault]]]:
    """Each system deployed, with its clients' way in and what is done to it; taken down before the next one."""
    power_cut, switchover = FAULTS["power_cut"], FAULTS["switchover"]
    if "devmentor" in names:
        try:
            cluster: Cluster = deploy(INVENTORY, fresh=True, volumes=False)
            yield "devmentor", cluster, cluster.poolers, [power_cut, switchover, FLOOR]
        finally:
            lab(INVENTORY, "down").require()
    settings = [name for name in names if name != "devmentor"]
    if settings:
        try:
            patroni = peer.deploy()
            planned = replace(switchover, do=patroni.switch, expect=FAILOVER, flawless=False)
            for name in settings:
                patroni.tune(name.removeprefix("patroni-"))
                yield name, patroni, patroni.proxies, [power_cut, planned]
        finally:
            lab(peer.INVENTORY, "down").require()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-failover", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, help="of each setting of the peer; as --rounds by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    options = parser.parse_args(arguments)
    names = options.systems.split(",")
    if unknown := sorted(set(names) - set(SYSTEMS)):
        parser.error(f"unknown system {', '.join(unknown)}; known: {', '.join(SYSTEMS)}")
    version, bad = commit(), 0
    peer_rounds = options.rounds if options.peer_rounds is None else options.peer_rounds
    try:
        for name, target, outside, faults in systems(names):
            for number in range(1, (options.rounds if name == "devmentor" else peer_rounds) + 1):
                for fault in faults:
                    evidence: Path = EVIDENCE / f"bench-{name}-{fault.name}-{number}"
                    result = play(target, fault, options.seed, number, outside, evidence, direct=False)
                    machine = {"cores": os.cpu_count(), "nodes": len(target.nodes)}
                    append(RESULTS, {"commit": version, "system": name, **machine, **result.as_dict()})
                    print(f"{name:<16} {line(result)}", *result.problems[:3], sep="\n    ", flush=True)
                    bad += bool(result.problems)
    except (NotWhole, RunError, LabError) as error:
        print(f"bench-failover: {error}", file=sys.stderr)
        return 1
    report.write(RESULTS)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
