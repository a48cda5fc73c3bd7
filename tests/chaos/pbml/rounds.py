"""One round: a whole platform, clients, a fault done once or several times in a row, and a verdict."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.errors import LabError
from tests.chaos.pbml.attempts import History
from tests.chaos.pbml.checker import Verdict, judge, longest_gap
from tests.chaos.pbml.faults import Fault
from tests.chaos.pbml.load import Load
from tests.chaos.pbml.pace import Brake, Pace
from tests.chaos.pbml.platform import Platform, TimeToLive
from tests.chaos.pbml.replicas import differ
from tests.chaos.pbml.scene import Scene
from tests.chaos.postgres.cluster import save_journal, wait_until
from tools.runs import load_average

WHOLE_SECONDS = 240.0
DIGEST_SECONDS = 20.0
"""Within which all replicas must say the same digest, once everything is live; and"""
_DIGEST_SHARE = 0.02
"""of the time that a replica was away, on top."""


class NotWhole(Exception):
    """The platform is not whole, so there is nothing to measure; the message says why."""


@dataclass
class Result:
    """Seconds throughout. `stall_s`: the longest time without an acknowledgement from the fault on; `recover_s`: from
    its undoing until everything acknowledged before was live and Qdrant agreed with the ledger; `digests_s`: from its
    undoing until all replicas said the same digest; `live_p95_s`: from acknowledgement to live. `local`: with spool and
    state. `writing_s` is how long clients wrote, `braked_s` how much of it they waited for PBML's backlog."""

    fault: str
    seed: int
    round: int
    load: float
    local: bool = False
    repeats: int = 1
    hold_s: float = 0.0
    writing_s: float = 0.0
    braked_s: float = 0.0
    backlog: int = 0
    stall_s: float = 0.0
    recover_s: float | None = None
    digests_s: float | None = None
    live_p50_s: float | None = None
    live_p95_s: float | None = None
    verdict: Verdict = field(default_factory=Verdict)
    notes: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class How:
    """What all rounds of a run have in common."""

    seed: int
    pace: Pace
    local: bool
    repeats: int


def settled(platform: Platform, local: bool) -> str:
    """Why the platform is not whole: PostgreSQL, spools empty, everything live, the index equal to the ledger."""
    if why := platform.cluster.settled():
        return why
    if local and (why := platform.replicas.spooled()):
        return why
    newest = platform.newest()
    waiting = platform.waiting(newest) if newest is not None else None
    if waiting is None:
        return "the ledger cannot be read"
    return f"{waiting} versions are not live" if waiting else platform.index_differs()


def play(platform: Platform, fault: Fault, how: How, number: int, evidence: Path) -> Result:
    """One round. Raises NotWhole, LabError."""
    _, why = wait_until(lambda: settled(platform, how.local), WHOLE_SECONDS, every=1.0)
    if why:
        raise NotWhole(f"before {fault.name}: {why}")
    repeats = 1 if fault.once else how.repeats
    result = Result(fault.name, how.seed, number, load_average(), how.local, repeats, fault.hold)
    name = f"{how.seed}/{fault.name}/{number}"
    run = f"chaos-{fault.name.replace('_', '-')}-{how.seed}-{number}-{int(time.time())}"
    load = Load(platform.url, platform.key, platform.tls(), run, name, how.pace)
    scene = Scene(platform, platform.leader(), random.Random(name), run, load.history, result.notes)
    started = time.monotonic()
    load.start()
    try:
        with Brake(how.pace, platform.unfinished) as brake:
            began, undone = _do_and_undo(fault, scene, result, repeats)
            # Writing goes on a little, so that what comes after the fault is seen too.
            time.sleep(3)
    finally:
        load.stop()
        how.pace.waiting = 0
    result.writing_s = round(time.monotonic() - started, 1)
    result.braked_s, result.backlog = round(brake.braked_s, 1), brake.most
    acknowledged = [write.end for write in load.history.writes if write.acknowledged]
    result.stall_s = round(longest_gap(acknowledged, began, time.monotonic()), 2)
    _wait(platform, fault, how, result, undone)
    _judge(platform, scene, result)
    if not result.problems and (why := fault.felt(scene)):
        result.problems.append(why)
    if result.problems:
        _keep(platform, load.history, began, evidence)
    return result


def _do_and_undo(fault: Fault, scene: Scene, result: Result, repeats: int) -> tuple[float, float]:
    """The moments (monotonic) of the first fault and of the last one's undoing. Clients go on all the while."""
    first = 0.0
    for _ in range(repeats):
        time.sleep(scene.chance.uniform(3.0, 6.0))
        first = first or time.monotonic()
        try:
            fault.do(scene)
            time.sleep(fault.hold)
        except LabError as error:
            result.problems.append(f"the fault itself failed: {error}")
        try:
            fault.undo(scene)
        except LabError as error:
            result.problems.append(f"undoing the fault failed: {error}")
        if result.problems:
            break
    return first, time.monotonic()


def _wait(platform: Platform, fault: Fault, how: How, result: Result, undone: float) -> None:
    """Until everything is live and, with a state, the same on every replica."""
    _, why = wait_until(lambda: settled(platform, how.local), fault.whole_s, every=1.0)
    if why:
        result.problems.append(f"not whole {fault.whole_s:.0f} s after the fault was undone: {why}")
        return
    result.recover_s = round(time.monotonic() - undone, 1)
    if not how.local:
        return
    since, seconds = datetime.now(UTC), DIGEST_SECONDS + _DIGEST_SHARE * fault.hold
    _, why = wait_until(lambda: differ(platform.replicas.digests(), since), seconds, every=0.5)
    if why:
        result.problems.append(f"{seconds:.0f} s after everything was live: {why}")
    else:
        result.digests_s = round(time.monotonic() - undone, 1)


def _judge(platform: Platform, scene: Scene, result: Result) -> None:
    rows = platform.rows(scene.run)
    if rows is None:
        result.problems.append("the ledger cannot be read")
        return
    result.verdict = judge(scene.history, rows)
    result.problems += result.verdict.problems
    if not result.verdict.acknowledged:
        result.problems.append("nothing was acknowledged")
    times = platform.times_to_live(scene.run)
    if times:
        result.live_p50_s, result.live_p95_s = percentile(times, 0.5), percentile(times, 0.95)


def percentile(times: Sequence[TimeToLive], share: float) -> float:
    """Seconds to live that a share of the versions did not exceed."""
    seconds = sorted(each.seconds for each in times)
    return round(seconds[min(len(seconds) - 1, int(len(seconds) * share))], 2)


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
