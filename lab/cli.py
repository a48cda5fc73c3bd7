"""The command line: `python -m lab VERB`. The only module of the lab that prints."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lab import disk, faults, floor, machine
from lab.cache import cache_in_use, prune
from lab.errors import HostStateError, LabError
from lab.inventory import LAYERS, SUITES, read_inventory
from lab.lifecycle import Lab, known_labs, remove_lab

DEFAULT_INVENTORY = Path(__file__).resolve().parents[1] / "inventories" / "lab"
QUIET_SECONDS = 2.0
LIFE_VERBS = {
    "kill": "cut the power: link down, then SIGKILL for everything",
    "stop": "shut down cleanly",
    "start": "power on and wait for SSH",
    "reboot": "reboot from inside and wait for SSH",
    "freeze": "stop every process of a host without ending it",
    "thaw": "let a frozen host run on",
}


class Terminal:
    """Progress on standard error: a step is named once it has taken two seconds, and how long it took at its end."""

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        done = threading.Event()

        def tick() -> None:
            wait = QUIET_SECONDS
            while not done.wait(wait):
                self.say(f"{what} ... {time.monotonic() - began:.0f} s")
                wait = 10.0

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
        self.say(f"{what}: {time.monotonic() - began:.1f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.set_defaults(inventory=DEFAULT_INVENTORY, limit=None)
    # Accepted before and after the verb; SUPPRESS keeps the verb's absent option from undoing the one before it.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for place in (parser, common):
        place.add_argument(
            "--inventory", type=Path, default=argparse.SUPPRESS, help="hosts.yml or its directory (inventories/lab)"
        )
        place.add_argument("--limit", default=argparse.SUPPRESS, help="hosts or groups, separated by commas")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[common])

    up = verb("up", "start the hosts, making what is missing; started ones are left alone")
    choice = up.add_mutually_exclusive_group()
    choice.add_argument("--layer", choices=LAYERS, help="override lab_layer")
    choice.add_argument("--bare", action="store_const", const="bare", dest="layer", help="the same as --layer bare")

    down = verb("down", "remove the lab (or the hosts of --limit) and everything it put on the machine")
    down.add_argument("--lab", metavar="ID", help="a lab by its identity (see list), when its inventory is gone")
    status = verb("status", "list the hosts and the cuts in force")
    status.add_argument("--json", action="store_true", help="for programs")

    execute = verb("exec", "run a command inside a host, also while its network is cut")
    execute.add_argument("host")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")

    for name, text in LIFE_VERBS.items():
        verb(name, text).add_argument("hosts", nargs="+", metavar="HOST")

    cut = verb("cut", "cut a host off, or the traffic between two sets of hosts (names separated by commas)")
    cut.add_argument("source", metavar="HOSTS")
    cut.add_argument("target", metavar="OTHER_HOSTS", nargs="?")
    cut.add_argument("--one-way", action="store_true", help="drop only what HOSTS send to OTHER_HOSTS")
    cut.add_argument("--keep-control", action="store_true", help="the machine (Ansible) still reaches an isolated host")
    verb("heal", "undo every cut")

    console = verb("console", "print a host's console log")
    console.add_argument("host")
    console.add_argument("--lines", type=int, default=0, help="only the last lines")

    fill = verb("fill", "make a directory's disk full (a bounded volume that outlives a power cut), or undo it")
    fill.add_argument("host")
    fill.add_argument("path", metavar="PATH")
    fill.add_argument("--free-mib", type=float, default=0.0, help="what the disk can still take (0)")
    fill.add_argument("--undo", action="store_true", help="lift the bound; what is in the volume stays")

    floor = verb("floor", "install the platform's packages on bare hosts by plain shell and say how long it took")
    floor.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")

    bake = verb("bake", "make the prebaked layer of a suite")
    bake.add_argument("--suite", choices=SUITES, default="trixie")
    verb("list", "list every lab of this machine")
    verb("prune", "remove cached root file systems and layers that no lab uses")
    verb("install-prerequisites", "install the Debian packages that the lab needs")
    return parser


def _up(lab: Lab, options: argparse.Namespace) -> int:
    times = lab.up(options.limit, options.layer)
    for name, seconds in times.items():
        print(f"{name}  {lab.host(name).address}  {seconds:.1f} s")
    return 0


def _down(lab: Lab, options: argparse.Namespace) -> int:
    lab.down(options.limit)
    return 0


def _status(lab: Lab, options: argparse.Namespace) -> int:
    rows = lab.status()
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=2))
        return 0
    print(f"lab {lab.names.identity}  {lab.inventory.file}")
    for row in rows:
        memory = "" if row.memory_mib is None else f"{row.memory_mib} MiB"
        print(f"{row.name:<16}{row.state:<9}{row.address:<15}{row.suite:<10}{row.layer:<7}{memory}".rstrip())
    for line in lab.cuts():
        print(f"cut: {line}")
    return 0


def _exec(lab: Lab, options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise LabError("no command given", f"lab exec {options.host} -- systemctl --failed")
    return lab.host(options.host).call(command)


def _life(lab: Lab, options: argparse.Namespace) -> int:
    hosts = [lab.host(name) for name in options.hosts]
    if options.verb == "start":
        for name, seconds in lab.up(",".join(options.hosts)).items():
            print(f"{name}  answers after {seconds:.1f} s")
        return 0
    for host in hosts:
        if options.verb == "kill":
            print(f"{host.name}  gone after {host.kill():.2f} s")
        elif options.verb == "reboot":
            print(f"{host.name}  answers after {host.reboot():.1f} s")
        elif options.verb == "stop":
            host.stop()
            print(f"{host.name}  off")
        else:
            host.require_init()
            host.group.freeze(options.verb == "freeze")
            print(f"{host.name}  {'frozen' if options.verb == 'freeze' else 'running'}")
    return 0


def _cut(lab: Lab, options: argparse.Namespace) -> int:
    sources = [lab.host(name) for name in options.source.split(",")]
    if options.target:
        faults.cut(sources, [lab.host(name) for name in options.target.split(",")], one_way=options.one_way)
        print(f"{options.source} {'-x->' if options.one_way else '<-x->'} {options.target}")
    else:
        for host in sources:
            faults.isolate(host, keep_control=options.keep_control)
            print(f"{host.name}  cut off{' from its peers' if options.keep_control else ''}")
    return 0


def _heal(lab: Lab, options: argparse.Namespace) -> int:
    faults.heal(lab.names)
    return 0


def _fill(lab: Lab, options: argparse.Namespace) -> int:
    host = lab.host(options.host)
    if options.undo:
        disk.unfill(host, options.path)
        print(f"{host.name}:{options.path}  takes data again")
    else:
        used = disk.fill(host, options.path, options.free_mib)
        print(f"{host.name}:{options.path}  {used / 2**20:.1f} MiB used, {options.free_mib:g} MiB free")
    return 0


def _floor(lab: Lab, options: argparse.Namespace) -> int:
    powered = [host for host in lab.hosts(options.limit) if host.powered]
    if not powered:
        raise HostStateError("no host is running, so there is nothing to measure", "python -m lab up --bare")
    result = floor.measure(powered, lab.progress)
    for name, figures in result.hosts.items():
        print(f"{name:<16}{figures.seconds:.1f} s  {figures.installed} packages")
    print(f"floor           {result.seconds:.1f} s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0


def _list() -> int:
    for identity, inventory in known_labs().items():
        print(f"{identity}  {inventory}")
    return 0


def _prune() -> int:
    for path in prune():
        print(f"removed {path}")
    return 0


def _console(lab: Lab, options: argparse.Namespace) -> int:
    lines = lab.host(options.host).console.read_text(errors="replace").splitlines()
    print("\n".join(lines[-options.lines :]))
    return 0


def _bake(lab: Lab, options: argparse.Namespace) -> int:
    with cache_in_use():  # or prune takes a layer in the making for one that nobody uses
        print(lab.layers(options.suite, "baked")[0])
    return 0


# The verbs that need an inventory; the others are in _run.
LAB_VERBS: dict[str, Callable[[Lab, argparse.Namespace], int]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "exec": _exec,
    **dict.fromkeys(LIFE_VERBS, _life),
    "cut": _cut,
    "heal": _heal,
    "console": _console,
    "fill": _fill,
    "floor": _floor,
    "bake": _bake,
}


def _run(options: argparse.Namespace) -> int:
    if options.verb == "install-prerequisites":
        print("installed: " + (" ".join(machine.install_prerequisites()) or "nothing was missing"))
        return 0
    machine.require_machine()
    if options.verb == "list":
        return _list()
    if options.verb == "prune":
        return _prune()
    if options.verb == "down" and options.lab:
        remove_lab(options.lab)
        return 0
    return LAB_VERBS[options.verb](Lab(read_inventory(options.inventory), Terminal()), options)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return _run(_parser().parse_args(arguments))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again, or `down` to remove everything", file=sys.stderr)
        return 130
