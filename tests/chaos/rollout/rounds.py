"""One round: a whole platform, clients, a roll, a fault, and a verdict on all of them."""

from __future__ import annotations

import datetime
import random
import subprocess
import time
from pathlib import Path
from typing import Any

from lab.errors import LabError
from tests.bench.rolling import load as rolling
from tests.bench.rolling.load import Load, Rates
from tests.chaos.postgres.cluster import wait_until
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.qwen.rounds import WHOLE_S, NotWhole, require_whole, save_evidence
from tests.chaos.rollout import checker, versions
from tests.chaos.rollout.expect import EXPECTED, NOTHING, STOPPED, UNDONE, Expected
from tests.chaos.rollout.faults import ROLL_S, TIER, Fault, Scene
from tests.chaos.rollout.journal import OPEN
from tests.chaos.rollout.rolls import Keepers, releases
from tools.runs import RunError, load_average

BEFORE_S = 90.0
"""Of load before the roll: its baseline is taken over the two minutes before its first step."""

AFTER_S = 15.0
FINISHED = "finished"


def serves_one(deployed: Deployed) -> str:
    """The release that every QWEN host has. Raises NotWhole where they differ."""
    found = releases(deployed, TIER)
    if len(set(found.values())) != 1 or "" in found.values():
        raise NotWhole(f"the hosts' releases differ: {found}; make site")
    return next(iter(found.values()))


def abandoned(keepers: Keepers) -> dict[str, str]:
    """The variables that end what an earlier round left: its lock, its open journal.

    Raises NotWhole where nobody can say.
    """
    journal = keepers.journal()
    if journal is None:
        raise NotWhole(f"the journal cannot be read on a majority of {', '.join(keepers.names)}")
    left = {"rollout_abandon": str(journal["run"])} if journal.get("state") in OPEN else {}
    return left | taking_over(keepers)


def taking_over(keepers: Keepers) -> dict[str, str]:
    """The variable that takes over the lock of a roll that was killed; nothing where nobody has it."""
    run, _ = keepers.lock()
    return {"rollout_take_over": run} if run else {}


def play(deployed: Deployed, fault: Fault, seed: int, number: int, rates: Rates, evidence: Path) -> dict[str, Any]:
    """Run one round. Every request and each roll's output go to the folder `evidence`, the hosts' logs too where there
    are problems. Raises NotWhole where the platform is not whole before it."""
    expected = EXPECTED[fault.name]
    require_whole(deployed)
    keepers = Keepers(deployed)
    name = f"{fault.name.replace('_', '-')}-{seed}-{number}-{int(time.time())}"
    # They name one run: to any other they do nothing.
    variables = {**versions.variables(name, fault.release), **abandoned(keepers)}
    load = Load(deployed, rates, run=f"chaos-{name}")
    chance = random.Random(f"{seed}/{fault.name}/{number}")
    scene = Scene(deployed, keepers, load, variables, serves_one(deployed), chance, evidence)
    at, before, began = (
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load_average(),
        time.monotonic(),
    )
    try:
        fault.prepare(scene)
        require_whole(deployed)
        load.on = carrier(deployed, scene)
        load.start()
    except BaseException:
        _undo(fault, scene)
        raise
    try:
        _under_load(fault, expected, scene)
    finally:
        result = load.stop()
    numbers, found = checker.judge(expected, result)
    scene.problems += found
    rolling.write(evidence / "load.json", result)
    if scene.problems:
        save_evidence(deployed, evidence)
    return {
        "fault": fault.name, "text": fault.text, "seed": seed, "round": number, "at": at,
        "load": [before, load_average()], "where": scene.notes, "rolls": scene.rolls,
        "seconds": round(time.monotonic() - began, 1), "behind_s": result.behind_s, **numbers,
        "problems": scene.problems,
    }  # fmt: skip


def carrier(deployed: Deployed, scene: Scene) -> str:
    """The host of the SQL clients: not one that the fault takes away, and without a PgBouncer where there is one."""
    names = [each for each in deployed.names(TIER) if scene.victim is None or each != scene.victim.name]
    poolers = deployed.names("pgbouncer")
    return next((name for name in names if name not in poolers), names[0])


def _under_load(fault: Fault, expected: Expected, scene: Scene) -> None:
    """The roll, the fault, its undoing, and what finishes the roll; findings go to the scene."""
    load = scene.load
    time.sleep(BEFORE_S)
    load.mark(checker.ROLLS)
    roll = None
    try:
        roll = fault.run(scene)
        status = roll.wait(ROLL_S)
        load.mark(STOPPED)
        journal = scene.check_journal("after the roll")
        state, held = str(journal.get("state", "")), scene.keepers.held()
        found = checker.ended(expected, status, roll.output, state, held)
        scene.problems += [*found, *([f"its last words: {roll.tail()}"] if found else [])]
    except (LabError, RunError, subprocess.TimeoutExpired) as error:
        scene.problems.append(f"the fault or the roll itself failed: {error}")
    finally:
        if roll is not None:
            roll.kill()
        _undo(fault, scene)
    load.mark(UNDONE)
    _, why = wait_until(scene.deployed.settled, WHOLE_S, every=2.0)
    if why:
        scene.problems.append(f"not whole {WHOLE_S:.0f} s after the fault was undone: {why}")
    if expected.finish != NOTHING:
        _finish(expected, scene)
    time.sleep(AFTER_S)


def _finish(expected: Expected, scene: Scene) -> None:
    """What an operator does next: the same roll again, or back."""
    try:
        roll = scene.roll(expected.finish, **taking_over(scene.keepers))
        status = roll.wait(ROLL_S)
    except RunError as error:
        scene.problems.append(f"{expected.finish}: {error}")
        return
    if status:
        scene.problems.append(f"{expected.finish} ended with {status}: {roll.tail()}")
    state = str(scene.check_journal(f"after {expected.finish}").get("state", ""))
    if state != FINISHED:
        scene.problems.append(f"the journal is {state or 'empty'} after {expected.finish}, not {FINISHED}")


def _undo(fault: Fault, scene: Scene) -> None:
    try:
        fault.undo(scene)
    except (LabError, subprocess.TimeoutExpired) as error:
        scene.problems.append(f"undoing the fault: {error}")
