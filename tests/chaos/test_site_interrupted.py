"""site.yml killed at random moments on fresh hosts and run again: it converges, and nothing is left half done.

ROUNDS (10) and SEED come from the environment; the seed is printed, so that a failure can be replayed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import INVENTORY
from tools.lab_run import prepare
from tools.runs import ROOT, Run, environment, lab, playbook

pytestmark = pytest.mark.lab

ROUNDS = int(os.environ.get("ROUNDS", "10"))
SEED = int(os.environ.get("SEED", str(random.randrange(10**6))))
# The moments are drawn over the length of a deployment on prebaked hosts.
SPAN = float(os.environ.get("SPAN", "300"))
SHORTEST_SPAN = 20.0


@pytest.fixture(scope="module")
def fresh() -> Path:
    lab(INVENTORY, "down").require()
    lab(INVENTORY, "up", "--layer", "baked", show=True).require()
    prepare(INVENTORY)
    yield INVENTORY
    lab(INVENTORY, "down").require()


def interrupted(inventory: Path, seconds: float) -> str | None:
    """Kills a site run without warning after so many seconds.

    Returns the last task it had begun, or None if the run had ended by itself, and well, before that moment.
    """
    command = ["ansible-playbook", "-i", str(inventory), "playbooks/site.yml"]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT, env=environment(ANSIBLE_VAULT_PASSWORD_FILE=str((inventory / ".vault-password").resolve())),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output = process.communicate(timeout=seconds)[0]
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    if process.returncode != -signal.SIGKILL:
        # What an interruption left behind must not make a run fail.
        Run(command, process.returncode, output, time.monotonic() - began).require()
        return None
    tasks = [line for line in output.splitlines() if line.startswith("TASK [")]
    return tasks[-1] if tasks else "(no task yet)"


def test_interrupted_runs_converge(fresh: Path) -> None:
    chance = random.Random(SEED)
    print(f"\nSEED={SEED} ROUNDS={ROUNDS}")
    span, done = SPAN, 0
    for _draw in range(3 * ROUNDS):
        if done == ROUNDS:
            break
        moment = chance.uniform(5, span)
        began = time.monotonic()
        task = interrupted(fresh, moment)
        took = time.monotonic() - began
        if task is None:  # what is there already makes later runs shorter: draw from what is left
            print(f"  a run ended by itself after {took:.0f} s, before its moment at {moment:.0f} s", flush=True)
            span = max(min(span, took), SHORTEST_SPAN)
            continue
        done += 1
        print(f"  round {done}: killed after {moment:.0f} s in {task}", flush=True)
        assert took < moment + 60
    assert done == ROUNDS, f"only {done} of {ROUNDS} rounds came to an interruption in {3 * ROUNDS} draws"
    playbook("site", fresh).require()
    again = playbook("site", fresh).require()
    assert again.changed() == {}
    playbook("verify", fresh, show=True).require()
