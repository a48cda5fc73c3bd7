"""Rounds of faults on the whole platform, one after the other: what `make chaos-qwen` and `make chaos-rollout` share.

Rounds without findings that a result file has for this commit are left out, so an interrupted campaign goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.progress import Silent
from tests.chaos.postgres.run import commit
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.qwen.rounds import NotWhole
from tools import ask, lab_run
from tools.inventory_vars import InventoryError
from tools.runs import ROOT, RunError, lab

INVENTORY = ROOT / "inventories" / "lab"
EVIDENCE = ROOT / ".cache" / "chaos"

Entry = dict[str, Any]


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


def known(path: Path, version: str) -> list[Entry]:
    """The rounds that the file has of a commit; those of another one are not kept beside them.

    With or without `+`: the page that a run writes is a change, too.
    """
    rounds = json.loads(path.read_text())["rounds"] if path.exists() else []
    return [each for each in rounds if each["commit"].rstrip("+") == version.rstrip("+")]


def save(path: Path, rounds: list[Entry]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"rounds": rounds}, indent=1) + "\n")
    new.replace(path)


def arguments_parser(name: str, doc: str, faults: Iterable[str], page: Path) -> argparse.ArgumentParser:
    """With the options that every campaign has."""
    parser = argparse.ArgumentParser(prog=name, description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", default="all", help=f"names separated by commas: {', '.join(faults)}")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--keep", action="store_true", help="use the running lab as it is; leave it up at the end")
    parser.add_argument("--only-look", action="store_true", help=f"leave {page.relative_to(ROOT)} alone")
    return parser


def wanted_faults(parser: argparse.ArgumentParser, given: str, faults: Iterable[str]) -> list[str]:
    """The names that were asked for; the parser ends the program at an unknown one."""
    every = list(faults)
    names = every if given in ("all", "") else given.split(",")
    if unknown := sorted(set(names) - set(every)):
        parser.error(f"unknown fault {', '.join(unknown)}; known: {', '.join(every)}")
    return names


@dataclass(frozen=True)
class Campaign:
    """`same`: what else makes two rounds the same one, beside fault, seed and round (the rate, where there is one).

    `play` plays a round of a fault and returns its entry; `line` says it in a line; `prepare` is called once, with the
    platform there; `write` writes the page from the result file.
    """

    name: str
    result: Path
    play: Callable[[Deployed, str, int, int, Path], Entry]
    line: Callable[[Entry], str]
    write: Callable[[Path], None]
    same: Callable[[Entry], bool] = lambda entry: True
    prepare: Callable[[Deployed], None] = lambda deployed: None

    def run(self, options: argparse.Namespace, faults: list[str]) -> int:
        """The exit status: 1 where there is a finding, or the platform could not be had or mended."""
        inventory, version, seed = options.inventory.resolve(), commit(), options.seed
        done = known(self.result, version)
        clean = {_identity(each) for each in done if not each["problems"] and self.same(each)}
        every = [(name, number) for number in range(1, options.rounds + 1) for name in faults]
        wanted = [(name, number) for name, number in every if (name, seed, number) not in clean]
        print(f"{version}: {len(wanted)} of {len(every)} rounds to do, seed {seed}", flush=True)
        if not wanted:
            return 0
        findings = 0
        try:
            deployed = have(inventory, options.keep)
            self.prepare(deployed)
            for name, number in wanted:
                evidence = EVIDENCE / f"{self.name}-{name}-{seed}-{number}"
                entry = {"commit": version, **self.play(deployed, name, seed, number, evidence)}
                done = [e for e in done if _identity(e) != _identity(entry) or not self.same(e)] + [entry]
                save(self.result, done)
                print(self.line(entry), flush=True)
                findings += len(entry["problems"])
                for problem in entry["problems"][:10]:
                    print(f"    {problem}", flush=True)
                if entry["problems"]:
                    print(f"    what was seen: {evidence}", flush=True)
            if not options.only_look:
                self.write(self.result)
        except (NotWhole, RunError, LabError, ask.AskError, InventoryError) as error:
            print(f"chaos-{self.name}: {error}", file=sys.stderr)
            return 1
        finally:
            if not options.keep:
                lab(inventory, "down").require()
        return 1 if findings else 0


def _identity(entry: Entry) -> tuple[str, int, int]:
    return entry["fault"], entry["seed"], entry["round"]
