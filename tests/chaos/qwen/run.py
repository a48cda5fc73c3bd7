"""`make chaos-qwen`: faults on the whole platform under load, and what its clients saw.

    python -m tests.chaos.qwen.run --rounds 1 --seed 7 --fault engine_killed,pbml_all [--keep]

Results go to .cache/bench/chaos-qwen.json, and from there into docs/qwen-chaos.md. Rounds without findings that are
there for this commit, seed and rate are left out, so an interrupted run goes on where it was. Exits 1 where there is a
finding.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.progress import Silent
from tests.chaos.postgres.run import commit
from tests.chaos.qwen import report
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.qwen.faults import FAULTS
from tests.chaos.qwen.rounds import NotWhole, play
from tools import ask, lab_run
from tools.inventory_vars import InventoryError
from tools.runs import ROOT, RunError, lab

INVENTORY = ROOT / "inventories" / "lab"
EVIDENCE = ROOT / ".cache" / "chaos"


def running(inventory: Path) -> bool:
    """Whether every host that starts by itself is on."""
    found = Lab(read_inventory(inventory), Silent())
    wanted = {name for name, spec in found.inventory.hosts.items() if spec.autostart}
    return wanted <= {status.name for status in found.status() if status.state == "running"}


def have(inventory: Path, keep: bool) -> Deployed:
    """The platform on its hosts: the running one as it is where it is to be kept, else deployed."""
    if not (keep and running(inventory)):
        lab(inventory, "up", show=True).require()
        lab_run.prepare(inventory)
        lab_run.deploy(inventory)
    return Deployed(inventory)


def known(path: Path, version: str) -> list[dict[str, Any]]:
    """The rounds that the file has of a commit; those of another one are not kept beside them.

    With or without `+`: the page that a run writes is a change, too.
    """
    rounds = json.loads(path.read_text())["rounds"] if path.exists() else []
    return [each for each in rounds if each["commit"].rstrip("+") == version.rstrip("+")]


def save(path: Path, rounds: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"rounds": rounds}, indent=1) + "\n")
    new.replace(path)


def identity(entry: dict[str, Any]) -> tuple[str, int, int, float]:
    return entry["fault"], entry["seed"], entry["round"], entry["rate"]


def line(entry: dict[str, Any]) -> str:
    recovery = "never" if entry["recovery_s"] is None else f"{entry['recovery_s']:.1f} s"
    errors = ", ".join(f"{name} {count}" for name, count in entry["errors"].items()) or "no errors"
    where = f" ({', '.join(entry['where'])})" if entry["where"] else ""
    return (
        f"{entry['fault']:<15} #{entry['round']}{where}: {entry['ok']} of {entry['requests']} ok, {errors}, worst gap "
        f"{entry['worst_gap_s']:.1f} s, recovered after {recovery}, load {entry['load'][1]}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos-qwen", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", default="all", help=f"names separated by commas: {', '.join(FAULTS)}")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--keep", action="store_true", help="use the running lab as it is; leave it up at the end")
    parser.add_argument("--only-look", action="store_true", help="leave docs/qwen-chaos.md alone")
    options = parser.parse_args(arguments)
    names = list(FAULTS) if options.fault in ("all", "") else options.fault.split(",")
    if unknown := sorted(set(names) - set(FAULTS)):
        parser.error(f"unknown fault {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    inventory, version = options.inventory.resolve(), commit()
    done = known(report.RESULT, version)
    wanted = [
        (name, number)
        for number in range(1, options.rounds + 1)
        for name in names
        if (name, options.seed, number, options.rate) not in {identity(e) for e in done if not e["problems"]}
    ]
    print(f"{version}: {len(wanted)} of {options.rounds * len(names)} rounds to do, seed {options.seed}", flush=True)
    if not wanted:
        return 0
    findings = 0
    try:
        deployed = have(inventory, options.keep)
        deployed.teach()
        for name, number in wanted:
            evidence = EVIDENCE / f"qwen-{name}-{options.seed}-{number}"
            result = play(deployed, FAULTS[name], options.seed, number, options.rate, evidence)
            entry = {"commit": version, **result}
            done = [each for each in done if identity(each) != identity(entry)] + [entry]
            save(report.RESULT, done)
            print(line(entry), flush=True)
            findings += len(entry["problems"])
            for problem in entry["problems"][:10]:
                print(f"    {problem}", flush=True)
            if entry["problems"]:
                print(f"    requests and logs: {evidence}", flush=True)
        if not options.only_look:
            report.write(report.RESULT)
    except (NotWhole, RunError, LabError, ask.AskError, InventoryError) as error:
        print(f"chaos-qwen: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            lab(inventory, "down").require()
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
