"""`make chaos-rollout`: faults of a rolling update under load, what its clients saw, and how the roll ended.

    python -m tests.chaos.rollout.run --rounds 1 --seed 7 --fault erring,host_lost [--keep]

Every round rolls QWEN to another release. Results go to .cache/bench/chaos-rollout.json, and from there into
docs/rollout-chaos.md. Rounds without findings that are there for this commit and seed are left out, so an interrupted
run goes on where it was. Exits 1 where there is a finding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lab.errors import LabError
from tests.bench.rolling.load import add_rates, rates_of
from tests.chaos.postgres.run import commit
from tests.chaos.qwen.rounds import NotWhole
from tests.chaos.qwen.run import EVIDENCE, INVENTORY, have, known, save
from tests.chaos.rollout import report
from tests.chaos.rollout.faults import FAULTS
from tests.chaos.rollout.rounds import play
from tools import ask
from tools.inventory_vars import InventoryError
from tools.runs import RunError, lab


def identity(entry: dict[str, Any]) -> tuple[str, int, int]:
    return entry["fault"], entry["seed"], entry["round"]


def line(entry: dict[str, Any]) -> str:
    where = f" ({', '.join(entry['where'])})" if entry["where"] else ""
    explained = ", ".join(f"{what} {count}" for what, count in entry["explained"].items()) or "none"
    return (
        f"{entry['fault']:<15} #{entry['round']}{where}: {entry['failed']} of {entry['requests']} failed, explained: "
        f"{explained}; {entry['rolls']} rolls in {entry['seconds']:.0f} s, load {entry['load'][1]}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos-rollout", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", default="all", help=f"names separated by commas: {', '.join(FAULTS)}")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--keep", action="store_true", help="use the running lab as it is; leave it up at the end")
    parser.add_argument("--only-look", action="store_true", help="leave docs/rollout-chaos.md alone")
    add_rates(parser)
    options = parser.parse_args(arguments)
    names = list(FAULTS) if options.fault in ("all", "") else options.fault.split(",")
    if unknown := sorted(set(names) - set(FAULTS)):
        parser.error(f"unknown fault {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    inventory, version = options.inventory.resolve(), commit()
    done = known(report.RESULT, version)
    clean = {identity(each) for each in done if not each["problems"]}
    every = [(name, number) for number in range(1, options.rounds + 1) for name in names]
    wanted = [(name, number) for name, number in every if (name, options.seed, number) not in clean]
    print(f"{version}: {len(wanted)} of {len(every)} rounds to do, seed {options.seed}", flush=True)
    if not wanted:
        return 0
    findings = 0
    try:
        deployed = have(inventory, options.keep)
        for name, number in wanted:
            evidence = EVIDENCE / f"rollout-{name}-{options.seed}-{number}"
            result = play(deployed, FAULTS[name], options.seed, number, rates_of(options), evidence)
            entry = {"commit": version, **result}
            done = [each for each in done if identity(each) != identity(entry)] + [entry]
            save(report.RESULT, done)
            print(line(entry), flush=True)
            findings += len(entry["problems"])
            for problem in entry["problems"][:10]:
                print(f"    {problem}", flush=True)
            if entry["problems"]:
                print(f"    requests, rolls and logs: {evidence}", flush=True)
        if not options.only_look:
            report.write(report.RESULT)
    except (NotWhole, RunError, LabError, ask.AskError, InventoryError) as error:
        print(f"chaos-rollout: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            lab(inventory, "down").require()
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
