"""`make vm-postgres`: the power of a virtual machine fails, and what the failover agent called durable must be there.

    python -m tests.vm.run --rounds 5 --seed 7

A round: the guest boots and writes promises and rule rows with the agent's code; the emulator is killed at a random
moment; the guest boots again and says what it finds. Controls run the same code without fsync and must lose what it
called durable. Results are appended to .cache/bench/vm-postgres.jsonl with the commit. Exits 1 where something that was
acknowledged is lost, or where a control lost nothing in any round.
"""

from __future__ import annotations

import argparse
import datetime
import random
import shutil
import sys
import time
from pathlib import Path

from lab import machine
from lab.cli import Terminal
from lab.errors import LabError
from lab.proc import run
from lab.state import locked
from tests.chaos.postgres.run import append, commit
from tests.vm.emulator import Emulator
from tests.vm.image import CACHE, PROGRAMS, STATE_MIB, Image, ensure_image, make_ext4
from tests.vm.initramfs import initramfs, platform_settings
from tests.vm.judge import CONTROLS, SUBJECTS, Result, inconclusive, line
from tools.runs import ROOT, load_average

RESULTS = ROOT / ".cache" / "bench" / "vm-postgres.jsonl"
WORK = CACHE / "run"
WRITING_SECONDS = (1.0, 6.0)


class Machine:
    """The guest over its boots: its disks, and how to start it."""

    def __init__(self, image: Image, limit_s: float) -> None:
        """`limit_s`: how long any one thing that the guest says may take."""
        self._image = image
        self._limit_s = limit_s
        self._initramfs = WORK / "initramfs"
        self._initramfs.write_bytes(initramfs(image, platform_settings()))
        self.renew(SUBJECTS)

    def renew(self, names: tuple[str, ...]) -> None:
        """New disks."""
        for name in names:
            if name.startswith("rule"):
                run(["cp", "--sparse=always", self._image.data, self._disk(name)])
            else:
                make_ext4(self._disk(name), STATE_MIB)

    @staticmethod
    def _disk(name: str) -> Path:
        return WORK / f"{name}.img"

    def boot(self, task: str, number: int) -> Emulator:
        disks = {name: self._disk(name) for name in (*SUBJECTS, *CONTROLS)}
        return Emulator(self._image, self._initramfs, disks, task, WORK / f"console-{number}-{task}.log")

    def write(self, number: int, seconds: float) -> tuple[dict[str, int], float]:
        """Boot, let it write, kill it `seconds` after every subject had an acknowledgement.

        The last one of each, and how long the boot took. Raises LabError.
        """
        begun = time.monotonic()
        last: dict[str, int] = {}
        with self.boot("write", number) as guest:
            guest.next(self._limit_s, "that it has booted")
            boot_s = time.monotonic() - begun
            while len(last) < len(SUBJECTS + CONTROLS):
                message = guest.next(self._limit_s, "of a first write of everything")
                last[message["subject"]] = message["acknowledged"]
            end = time.monotonic() + seconds
            messages = []
            while message := guest.told(end - time.monotonic()):
                messages.append(message)
            messages += guest.kill()
        for message in messages:
            last[message["subject"]] = message["acknowledged"]
        return last, boot_s

    def read(self, number: int) -> dict[str, dict[str, object]]:
        """Boot, and what is there by subject. Raises LabError."""
        found = {}
        with self.boot("read", number) as guest:
            guest.next(self._limit_s, "that it has booted")
            while "end" not in (message := guest.next(self._limit_s, "what it found")):
                found[message["subject"]] = message
        return found


def play(guest: Machine, seed: int, number: int) -> Result:
    """One round. Raises LabError where the guest does not do its part."""
    seconds = random.Random(f"{seed}/{number}").uniform(*WRITING_SECONDS)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    result = Result(seed, number, at, load_average(), wrote_s=round(seconds, 2))
    guest.renew(CONTROLS)
    acknowledged, boot_s = guest.write(number, seconds)
    result.boot_s = round(boot_s, 1)
    result.judge(acknowledged, guest.read(number))
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vm-postgres", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300, help="seconds that one step of the guest may take (300)")
    parser.add_argument("--install-prerequisites", action="store_true", help="first what is missing")
    options = parser.parse_args(arguments)
    seen: list[dict[str, object]] = []
    try:
        if options.install_prerequisites:
            machine.install_prerequisites(PROGRAMS)
        machine.require_machine(PROGRAMS, "make vm-postgres installs it")
        version = commit()
        with locked(CACHE / "run.lock"):
            shutil.rmtree(WORK, ignore_errors=True)
            WORK.mkdir()
            try:
                guest = Machine(ensure_image(Terminal()), options.limit)
                for number in range(1, options.rounds + 1):
                    result = play(guest, options.seed, number)
                    append(RESULTS, {"commit": version, **result.as_dict()})
                    seen.append(result.as_dict())
                    print(line(result), flush=True)
                    if result.problems:
                        guest.renew(SUBJECTS)
            finally:
                for path in [*WORK.glob("*.img"), WORK / "initramfs"]:
                    path.unlink(missing_ok=True)
    except LabError as error:
        print(f"vm-postgres: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vm-postgres: interrupted; the emulator has ended", file=sys.stderr)
        return 130
    return verdict(seen)


def verdict(seen: list[dict[str, object]]) -> int:
    """Print it; the exit status."""
    bad = sum(bool(entry["problems"]) for entry in seen)
    print(f"\n{len(seen)} rounds, {bad} with acknowledged writes lost; consoles: {WORK}")
    if blind := inconclusive(seen):
        print(
            f"vm-postgres: {', '.join(blind)} lost nothing in {len(seen)} rounds, so this run proves nothing\n"
            "  remedy: more rounds; if that does not help, see what else syncs these disks (tests/vm/guest.py)",
            file=sys.stderr,
        )
    return 1 if bad or blind else 0


if __name__ == "__main__":
    sys.exit(main())
