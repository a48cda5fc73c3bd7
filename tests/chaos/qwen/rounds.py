"""One round: a whole platform, clients, a fault, and a verdict on what the clients saw."""

from __future__ import annotations

import datetime
import random
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.errors import LabError
from tests.chaos.postgres.cluster import save_journal, wait_until
from tests.chaos.qwen import checker, seen
from tests.chaos.qwen.client import Load
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.qwen.expect import EXPECTED
from tests.chaos.qwen.faults import Fault, Scene
from tests.chaos.qwen.questions import ask
from tools.runs import load_average

WHOLE_S = 240.0
BEFORE_S = 12.0
"""Of load before the fault: repeated questions are cached, and there is something to compare with."""


class NotWhole(Exception):
    """The platform is not whole, so there is nothing to measure; the message says why."""


def require_whole(deployed: Deployed) -> float:
    """Seconds until it was whole. Raises NotWhole with the reason."""
    took, why = wait_until(deployed.settled, WHOLE_S, every=2.0)
    if why:
        raise NotWhole(f"the platform is not whole after {WHOLE_S:.0f} s: {why}")
    return took


def play(deployed: Deployed, fault: Fault, seed: int, number: int, rate: float, evidence: Path) -> dict[str, Any]:
    """Run one round. Every request goes to the folder `evidence`, the hosts' logs too where there are problems.

    Raises NotWhole where the platform is not whole before it.
    """
    expected = EXPECTED[fault.name]
    require_whole(deployed)
    scene = Scene(deployed, random.Random(f"{seed}/{fault.name}/{number}"))
    problems: list[str] = []
    run = f"{fault.name}-{seed}-{number}-{int(time.time())}".replace("_", "-")
    began_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    load_before = load_average()
    load = Load(
        deployed.base_url, deployed.client.ca, deployed.client.key, deployed.model(), rate,
        lambda each: ask(run, seed, each),
    )  # fmt: skip
    moments: checker.Moments | None = None
    try:
        if fault.prepare is not None:
            fault.prepare(scene)
            require_whole(deployed)
        load.start()
        try:
            moments = _under_load(fault, scene, load, problems)
        finally:
            load.stop()
    except BaseException:
        if moments is None:  # what was half done must not stay
            _undo(fault, scene, problems)
        raise
    verdict = checker.judge(expected, load.seen, moments)
    whole_s, why = wait_until(deployed.settled, WHOLE_S, every=2.0)
    if why:
        problems.append(f"not whole {WHOLE_S:.0f} s after the clients ended: {why}")
    problems += verdict.violations
    seen.write(evidence / "requests.jsonl", load.seen)
    if problems:
        save_evidence(deployed, evidence)
    return {
        "fault": fault.name, "text": fault.text, "seed": seed, "round": number, "at": began_at, "rate": rate,
        "load": [load_before, load_average()], "where": scene.notes, "behind_s": round(load.behind_s, 2),
        "held_s": round(moments.undone - moments.began, 1), "whole_s": None if why else round(whole_s, 1),
        **{name: value for name, value in asdict(verdict).items() if name != "violations"},
        "problems": problems, "timeline": checker.timeline(load.seen, moments.began),
    }  # fmt: skip


def _under_load(fault: Fault, scene: Scene, load: Load, problems: list[str]) -> checker.Moments:
    """The fault and its undoing, and the load until everything is as before or its time is over."""
    time.sleep(BEFORE_S + scene.chance.uniform(0, 2))
    if not any(each.ok for each in list(load.seen)):
        said = sorted({each.outcome for each in list(load.seen)})
        raise NotWhole(f"no client got an answer before the fault: {', '.join(said) or 'nothing came back'}")
    began = time.monotonic()
    try:
        try:
            fault.do(scene)
            time.sleep(max(0.0, began + fault.hold - time.monotonic()))
        except (LabError, subprocess.TimeoutExpired) as error:
            problems.append(f"the fault itself failed: {error}")
    finally:
        _undo(fault, scene, problems)
    undone = time.monotonic()
    limit = EXPECTED[fault.name].recover_s + 2 * checker.CALM_S

    def not_yet() -> str:
        now = checker.Moments(began, undone, time.monotonic())
        return "" if checker.recovered(list(load.seen), now) is not None else "not recovered"

    wait_until(not_yet, limit, every=1.0)
    time.sleep(checker.CALM_S / 2)  # what was under way while that was looked at
    return checker.Moments(began, undone, time.monotonic())


def _undo(fault: Fault, scene: Scene, problems: list[str]) -> None:
    try:
        fault.undo(scene)
    except (LabError, subprocess.TimeoutExpired) as error:
        problems.append(f"undoing the fault: {error}")


def save_evidence(deployed: Deployed, folder: Path) -> None:
    """Every host's journal of the last minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    for group in ("gateway", "qwen", "pbml"):
        for host in deployed.hosts(group):
            save_journal(host, folder, seconds=400)
