"""`make chaos-postgres`: faults on a real cluster under load, and what its clients saw.

    python -m tests.chaos.postgres.run --rounds 3 --seed 7 --fault power_cut,freeze

A round is (fault, seed, number). Results are appended to .cache/bench/failover.jsonl with the commit; rounds that are
there for this commit are left out, so an interrupted run goes on where it was. Exits 1 where a promise was not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab import disk
from lab.errors import LabError
from tests.chaos.postgres.cluster import Cluster
from tests.chaos.postgres.faults import DATA, FAULTS
from tests.chaos.postgres.rounds import NotWhole, Result, play
from tools.runs import ROOT, RunError, lab, playbook

INVENTORY = Path(__file__).with_name("inventory")
RESULTS = ROOT / ".cache" / "bench" / "failover.jsonl"
EVIDENCE = ROOT / ".cache" / "chaos"
DISK_MIB = 3072
# The tiers that this inventory has not: the archive's store, and what watches the hosts.
LEFT_OUT = "pgbackrest,monitoring"


def commit() -> str:
    """The checkout's commit, with `+` where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain") else "")


def deploy(inventory: Path, fresh: bool = False, volumes: bool = True) -> Cluster:
    """Hosts and the platform on them. `volumes`: disks of a bounded size, which `disk_full` needs."""
    if fresh:
        lab(inventory, "down").require()
    lab(inventory, "up", show=True).require()
    playbook("secrets", inventory).require()
    cluster = Cluster(inventory)
    for node in cluster.nodes if volumes else []:
        host = cluster.lab.host(node)
        if DATA not in disk.volumes(host):
            disk.fill(host, DATA, DISK_MIB)
    playbook("site", inventory, "--skip-tags", LEFT_OUT).require()
    cluster.bootstrap()
    return cluster


def have(inventory: Path) -> Cluster:
    """The lab as it is brought up to date; made anew where a run that was killed left a fault behind in it."""
    try:
        return deploy(inventory)
    except (RunError, LabError) as error:
        print(f"made anew, because it cannot be brought up to date: {str(error).splitlines()[0]}", flush=True)
        return deploy(inventory, fresh=True)


def known(path: Path) -> set[tuple[str, str, int, int]]:
    """(commit, fault, seed, round) of the rounds that the file has."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(r["commit"], r["fault"], r["seed"], r["round"]) for r in map(json.loads, lines)}


def append(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def line(result: Result) -> str:
    rejoin = f"{result.rejoin_s:.1f}" if result.rejoin_s is not None else "never"
    return (
        f"{result.fault:<18} #{result.round} {result.leader} -> {result.successor or result.outcome}: "
        f"stall {result.stall_s:.2f} s, {result.acknowledged} acknowledged, {result.lost} lost, "
        f"{sum(result.failed.values())} failed, {result.reads_back} reads back, whole again after {rejoin} s, "
        f"load {result.load}"
    )


def summary(entries: Iterable[dict[str, Any]]) -> str:
    """A table: a line for each fault."""
    by_fault: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_fault.setdefault(entry["fault"], []).append(entry)
    lines = [
        f"{'fault':<18}{'rounds':>7}{'stall min':>10}{'median':>8}{'max':>8}{'acked':>8}{'lost':>6}{'bad':>5}"
        f"{'rejoin':>14}{'load':>10}"
    ]
    for fault, found in by_fault.items():
        stalls = [entry["stall_s"] for entry in found]
        rejoins = [entry["rejoin_s"] for entry in found if entry["rejoin_s"] is not None]
        loads = [entry["load"] for entry in found]
        lines.append(
            f"{fault:<18}{len(found):>7}{min(stalls):>10.2f}{statistics.median(stalls):>8.2f}{max(stalls):>8.2f}"
            f"{sum(e['acknowledged'] for e in found):>8}{sum(e['lost'] for e in found):>6}"
            f"{sum(bool(e['problems']) for e in found):>5}"
            f"{_range(rejoins):>14}{_range(loads):>10}"
        )
    return "\n".join(lines)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f}-{max(values):.1f}" if values else "-"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos-postgres", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", default="all", help=f"names separated by commas: {', '.join(FAULTS)}")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end")
    parser.add_argument("--as-is", action="store_true", help="the lab is up and deployed: do not deploy again")
    options = parser.parse_args(arguments)
    names = list(FAULTS) if options.fault in ("all", "") else options.fault.split(",")
    if unknown := sorted(set(names) - set(FAULTS)):
        parser.error(f"unknown fault {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    inventory = options.inventory.resolve()
    version, seen = commit(), []
    wanted = [
        (name, number)
        for number in range(1, options.rounds + 1)
        for name in names
        if (version, name, options.seed, number) not in known(RESULTS)
    ]
    print(f"{version}: {len(wanted)} of {options.rounds * len(names)} rounds to do, seed {options.seed}", flush=True)
    try:
        cluster = Cluster(inventory) if options.as_is else have(inventory) if wanted else None
        for name, number in wanted:
            assert cluster is not None
            evidence = EVIDENCE / f"{name}-{options.seed}-{number}"
            result = play(cluster, FAULTS[name], options.seed, number, cluster.poolers, evidence)
            append(RESULTS, {"commit": version, "system": "devmentor", **result.as_dict()})
            seen.append(result.as_dict())
            print(line(result), flush=True)
            for problem in result.problems[:10]:
                print(f"    {problem}", flush=True)
            if result.problems:
                print(f"    logs: {evidence}", flush=True)
            if not result.whole_again:
                cluster = deploy(inventory, fresh=True)
    except (NotWhole, RunError, LabError) as error:
        print(f"chaos-postgres: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep and not options.as_is:
            lab(inventory, "down").require()
    print("\n" + summary(seen))
    return 1 if any(entry["problems"] for entry in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
