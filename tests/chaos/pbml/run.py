"""`make chaos-pbml`: faults on a whole platform while clients write and read, and what was kept of its promises.

    python -m tests.chaos.pbml.run --rounds 1 --seed 1 --fault workers_killed,collection_dropped
    python -m tests.chaos.pbml.run --local --repeat 5 --fault spool_disk_full,checkpoint_corrupt

A round is (mode, fault, seed, number). Results are appended to .cache/bench/chaos-pbml.jsonl with the commit; rounds
that are there for this commit are left out. `--write-docs` makes the tables in docs/pbml-chaos.md. Exits 1 where a
promise broke.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from lab.errors import LabError
from tests.chaos.pbml.faults import FAULTS, Fault
from tests.chaos.pbml.local_faults import DEPLOYED
from tests.chaos.pbml.pace import Pace
from tests.chaos.pbml.platform import Platform
from tests.chaos.pbml.report import line, table
from tests.chaos.pbml.rounds import How, NotWhole, play
from tests.chaos.postgres.run import append, commit
from tools.docs import replaced
from tools.lab_run import prepare
from tools.runs import ROOT, RunError, lab, playbook

INVENTORY = ROOT / "inventories" / "lab"
RESULTS = ROOT / ".cache" / "bench" / "chaos-pbml.jsonl"
EVIDENCE = ROOT / ".cache" / "chaos"
PAGE = ROOT / "docs" / "pbml-chaos.md"

Round = tuple[str, bool, str, int, int]
"""commit, with spool and state, fault, seed, number"""


def known(path: Path) -> set[Round]:
    """The rounds that the file has."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = map(json.loads, lines)
    return {(r["commit"], r.get("local", False), r["fault"], r["seed"], r["round"]) for r in found}


def write_docs() -> None:
    """docs/pbml-chaos.md from every round that the results have."""
    entries = [json.loads(each) for each in RESULTS.read_text().splitlines()]
    text = PAGE.read_text()
    for marker, local in (("chaos", False), ("chaos-local", True)):
        found = [entry for entry in entries if entry.get("local", False) == local]
        if found:
            text = replaced(text, marker, table(found), PAGE.name)
    PAGE.write_text(text)


def deploy(inventory: Path, local: bool) -> None:
    """The lab's hosts and the platform on them. Raises RunError."""
    lab(inventory, "up", show=True).require()
    prepare(inventory)
    # These clients have one key, and are many.
    variables = {"gateway_rate_requests": 1_000_000, **(DEPLOYED if local else {})}
    playbook("site", inventory, "--extra-vars", json.dumps(variables), show=True).require()


def chosen(names: str, local: bool, away_s: float) -> list[Fault]:
    """The faults of a run, those that need spool and state left out of one without. ValueError where one is unknown."""
    if names in ("", "all"):
        found = [fault for fault in FAULTS.values() if local or not fault.local]
    else:
        wanted = names.split(",")
        if unknown := sorted(set(wanted) - set(FAULTS)):
            raise ValueError(f"unknown fault {', '.join(unknown)}; known: {', '.join(FAULTS)}")
        found = [FAULTS[name] for name in wanted]
        if needing := [fault.name for fault in found if fault.local and not local]:
            raise ValueError(f"{', '.join(needing)}: only with --local")
    return [replace(fault, hold=away_s) if fault.name == "replica_away" else fault for fault in found]


def parsed(arguments: list[str] | None) -> tuple[argparse.Namespace, list[Fault]]:
    pace = Pace()
    parser = argparse.ArgumentParser(prog="chaos-pbml", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", default="all", help=f"names separated by commas: {', '.join(FAULTS)}")
    parser.add_argument(
        "--local", action="store_true", help="with spool and local state, and the faults that need them"
    )
    parser.add_argument("--repeat", type=int, default=1, help="how often a round does its fault before all is checked")
    parser.add_argument("--away", type=float, default=30.0, help="seconds of replica_away; 3600 for an hour's writes")
    parser.add_argument("--rate", type=float, default=pace.rate, help="writes a second that clients try, all together")
    parser.add_argument("--writers", type=int, default=pace.writers)
    parser.add_argument("--reads", type=float, default=pace.reads, help="fetches a second, all together")
    parser.add_argument(
        "--small", type=float, default=pace.small, help="share of the writes that are turns of a few words"
    )
    parser.add_argument("--backlog", type=int, default=pace.backlog, help="versions not live above which writers wait")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end")
    parser.add_argument(
        "--as-is", action="store_true", help="the lab is up and deployed in this mode: do not deploy again"
    )
    parser.add_argument("--write-docs", action="store_true", help="make the tables of docs/pbml-chaos.md afterwards")
    options = parser.parse_args(arguments)
    try:
        return options, chosen(options.fault, options.local, options.away)
    except ValueError as error:
        parser.error(str(error))


def main(arguments: list[str] | None = None) -> int:
    options, faults = parsed(arguments)
    inventory, version, broken = options.inventory.resolve(), commit(), 0
    done = known(RESULTS)
    wanted = [
        (fault, number)
        for number in range(1, options.rounds + 1)
        for fault in faults
        if (version, options.local, fault.name, options.seed, number) not in done
    ]
    print(f"{version}: {len(wanted)} of {options.rounds * len(faults)} rounds to do, seed {options.seed}", flush=True)
    pace = Pace(options.rate, options.writers, options.reads, backlog=options.backlog, small=options.small)
    how = How(options.seed, pace, options.local, options.repeat)
    try:
        if wanted and not options.as_is:
            deploy(inventory, options.local)
        platform = Platform(inventory) if wanted else None
        for fault, number in wanted:
            assert platform is not None
            evidence = EVIDENCE / f"pbml-{'local-' * options.local}{fault.name}-{options.seed}-{number}"
            result = play(platform, fault, how, number, evidence)
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
