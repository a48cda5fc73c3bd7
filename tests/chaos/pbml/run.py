"""`make chaos-pbml`: faults on a whole platform while clients write and read, and what was kept of its promises.

    python -m tests.chaos.pbml.run --rounds 1 --seed 1 --fault workers_killed,collection_dropped

A round is (fault, seed, number). Results are appended to .cache/bench/chaos-pbml.jsonl with the commit; rounds that are
there for this commit are left out. `--write-docs` makes the table in docs/pbml-chaos.md. Exits 1 where a promise broke.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import LabError
from tests.chaos.pbml.attempts import History
from tests.chaos.pbml.checker import Verdict, judge, longest_gap
from tests.chaos.pbml.faults import FAULTS, Fault, Scene
from tests.chaos.pbml.load import Load
from tests.chaos.pbml.platform import Platform
from tests.chaos.postgres.cluster import save_journal, wait_until
from tests.chaos.postgres.run import append, commit, known
from tools.docs import replaced
from tools.lab_run import prepare
from tools.runs import ROOT, RunError, lab, load_average, playbook

INVENTORY = ROOT / "inventories" / "lab"
RESULTS = ROOT / ".cache" / "bench" / "chaos-pbml.jsonl"
EVIDENCE = ROOT / ".cache" / "chaos"
PAGE = ROOT / "docs" / "pbml-chaos.md"
WHOLE_SECONDS, RECOVER_SECONDS = 120.0, 240.0


class NotWhole(Exception):
    """The platform is not whole, so there is nothing to measure; the message says why."""


@dataclass
class Result:
    """Seconds throughout. `stall_s`: the longest time without an acknowledgement from the fault on; `recover_s`: from
    its undoing until everything acknowledged before was live and Qdrant agreed with the ledger."""

    fault: str
    seed: int
    round: int
    load: float
    stall_s: float = 0.0
    recover_s: float | None = None
    verdict: Verdict = field(default_factory=Verdict)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def settled(platform: Platform) -> str:
    """Why the platform is not whole: PostgreSQL, everything live, the index equal to the ledger."""
    if why := platform.cluster.settled():
        return why
    newest = platform.newest()
    waiting = platform.waiting(newest) if newest is not None else None
    if waiting is None:
        return "the ledger cannot be read"
    return f"{waiting} versions are not live" if waiting else platform.index_differs()


def play(platform: Platform, fault: Fault, seed: int, number: int, pause_s: float, evidence: Path) -> Result:
    """One round: a whole platform, clients, a fault, and a verdict. Raises NotWhole, LabError."""
    _, why = wait_until(lambda: settled(platform), WHOLE_SECONDS, every=1.0)
    if why:
        raise NotWhole(f"before {fault.name}: {why}")
    result = Result(fault.name, seed, number, load_average())
    name = f"{seed}/{fault.name}/{number}"
    scene = Scene(platform, platform.leader(), random.Random(name))
    run = f"chaos-{fault.name.replace('_', '-')}-{seed}-{number}-{int(time.time())}"
    load = Load(platform.url, platform.key, platform.tls(), run, name, pause_s)
    load.start()
    try:
        began, undone = _do_and_undo(fault, scene, result)
        # Writing goes on a little, so that what comes after the fault is seen too.
        time.sleep(3)
    finally:
        load.stop()
    acknowledged = [write.end for write in load.history.writes if write.acknowledged]
    result.stall_s = round(longest_gap(acknowledged, began, time.monotonic()), 2)
    _, why = wait_until(lambda: settled(platform), RECOVER_SECONDS, every=1.0)
    if why:
        result.problems.append(f"not whole {RECOVER_SECONDS:.0f} s after the fault was undone: {why}")
    else:
        result.recover_s = round(time.monotonic() - undone, 1)
    rows = platform.rows(run)
    if rows is None:
        result.problems.append("the ledger cannot be read")
    else:
        result.verdict = judge(load.history, rows)
        result.problems += result.verdict.problems
        if not result.verdict.acknowledged:
            result.problems.append("nothing was acknowledged")
    if result.problems:
        _keep(platform, load.history, began, evidence)
    return result


def _do_and_undo(fault: Fault, scene: Scene, result: Result) -> tuple[float, float]:
    """The moments (monotonic) of the fault and of its undoing."""
    time.sleep(scene.chance.uniform(3.0, 6.0))
    began = time.monotonic()
    try:
        fault.do(scene)
        time.sleep(fault.hold)
    except LabError as error:
        result.problems.append(f"the fault itself failed: {error}")
    try:
        fault.undo(scene)
    except LabError as error:
        result.problems.append(f"undoing the fault failed: {error}")
    return began, time.monotonic()


def _keep(platform: Platform, history: History, began: float, evidence: Path) -> None:
    evidence.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{w.start - began:9.3f} {w.end - began:9.3f} {w.kind} {w.subject} {w.token} {w.outcome} {w.watermark} "
        f"{w.detail}"
        for w in history.writes
    ]
    lines += [
        f"{r.start - began:9.3f} {r.end - began:9.3f} read {r.write.subject} {r.write.token} {sorted(r.found)} "
        f"{'missing ' * r.missing}{'degraded ' * r.degraded}{r.error}"
        for r in history.reads
    ]
    (evidence / "attempts.txt").write_text("\n".join(lines) + "\n")
    for name in platform.hosts:
        save_journal(platform.host(name), evidence)


def line(result: Result) -> str:
    v = result.verdict
    recovered = f"{result.recover_s:.1f}" if result.recover_s is not None else "never"
    return (
        f"{result.fault:<20} #{result.round}: {v.acknowledged} acknowledged, {v.lost} lost, {v.doubled} doubled, "
        f"{v.unknown} unknown ({v.unknown_kept} kept), {v.reads} reads, {v.stale} stale, {v.incomplete} incomplete, "
        f"{v.unanswered} unanswered, stall {result.stall_s:.2f} s, recovered after {recovered} s, load {result.load}"
    )


def table(entries: Iterable[dict[str, Any]]) -> str:
    """A line for each fault, over all of its rounds, and one for all."""
    by_fault: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_fault.setdefault(entry["fault"], []).append(entry)
    lines = [
        "| fault | rounds | acknowledged | lost | doubled | outcome unknown | reads by watermark | stale "
        "| incomplete, and said so | unanswered | longest stall, s | recovered after, s (median, most) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    counts = ("acknowledged", "lost", "doubled", "unknown", "reads", "stale", "incomplete", "unanswered")
    everything = [entry for found in by_fault.values() for entry in found]
    for name, found in [*by_fault.items(), ("all", everything)]:
        sums = [sum(entry["verdict"][count] for entry in found) for count in counts]
        recovered = [entry["recover_s"] for entry in found if entry["recover_s"] is not None]
        never = len(found) - len(recovered)
        took = f"{statistics.median(recovered):.1f}, {max(recovered):.1f}" if recovered else ""
        text = FAULTS[name].text if name in FAULTS else "all"
        lines.append(
            f"| {text} | {len(found)} | {' | '.join(map(str, sums))} | {max(e['stall_s'] for e in found):.1f} "
            f"| {took}{f'; {never} never' if never else ''} |"
        )
    loads = [entry["load"] for entry in everything]
    commits = ", ".join(sorted({entry["commit"] for entry in everything}))
    return "\n".join(
        [*lines, "", f"Commit {commits}; load before the rounds {min(loads)} to {max(loads)} on two cores."]
    )


def write_docs() -> None:
    """docs/pbml-chaos.md from every round that the results have."""
    entries = [json.loads(each) for each in RESULTS.read_text().splitlines()]
    PAGE.write_text(replaced(PAGE.read_text(), "chaos", table(entries), PAGE.name))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos-pbml", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", default="all", help=f"names separated by commas: {', '.join(FAULTS)}")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between a client's requests")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end")
    parser.add_argument("--as-is", action="store_true", help="the lab is up and deployed: do not deploy again")
    parser.add_argument("--write-docs", action="store_true", help="make the table of docs/pbml-chaos.md afterwards")
    options = parser.parse_args(arguments)
    names = list(FAULTS) if options.fault in ("all", "") else options.fault.split(",")
    if unknown := sorted(set(names) - set(FAULTS)):
        parser.error(f"unknown fault {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    inventory, version, broken = options.inventory.resolve(), commit(), 0
    wanted = [
        (name, number)
        for number in range(1, options.rounds + 1)
        for name in names
        if (version, name, options.seed, number) not in known(RESULTS)
    ]
    print(f"{version}: {len(wanted)} of {options.rounds * len(names)} rounds to do, seed {options.seed}", flush=True)
    try:
        if wanted and not options.as_is:
            lab(inventory, "up", show=True).require()
            prepare(inventory)
            # These clients have one key, and are many.
            playbook("site", inventory, "--extra-vars", "gateway_rate_requests=1000000", show=True).require()
        platform = Platform(inventory)
        for name, number in wanted:
            evidence = EVIDENCE / f"pbml-{name}-{options.seed}-{number}"
            result = play(platform, FAULTS[name], options.seed, number, options.pause, evidence)
            append(RESULTS, {"commit": version, **result.as_dict()})
            broken += bool(result.problems)
            print(line(result), flush=True)
            for problem in result.problems[:10]:
                print(f"    {problem}", flush=True)
    except (NotWhole, RunError, LabError) as error:
        print(f"chaos-pbml: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep and not options.as_is:
            lab(inventory, "down").require()
    if options.write_docs:
        write_docs()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
