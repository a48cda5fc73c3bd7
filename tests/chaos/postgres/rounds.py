"""One round: a whole cluster, clients, a fault, and a verdict on what the clients were told."""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import LabError
from tests.chaos.postgres import faults
from tests.chaos.postgres.attempts import Attempt
from tests.chaos.postgres.checker import Verdict, judge, stall
from tests.chaos.postgres.cluster import DATABASE, TABLE, Target, leader_of, make_table, rows, wait_until
from tests.chaos.postgres.faults import Fault, Scene
from tests.chaos.postgres.watch import Watch
from tools.runs import load_average

WHOLE_SECONDS = 120.0
OUTAGE_SECONDS = 90.0
REJOIN_SECONDS = 180.0
SETTLE_SECONDS = 2.0
# Longer than this without an acknowledgement is no "writes go on".
GOES_ON_SECONDS = 5.0


class NotWhole(Exception):
    """The cluster is not whole, so there is nothing to measure; the message says why."""


@dataclass
class Result:
    """What one round saw. Seconds throughout; `stall_s` is the longest time without an acknowledgement: the RTO, where
    `outcome` is a failover."""

    fault: str
    seed: int
    round: int
    at: str
    load: float
    leader: str
    expected: str
    outcome: str = ""
    successor: str = ""
    stall_s: float = 0.0
    rejoin_s: float | None = None
    acknowledged: int = 0
    lost: int = 0
    unacknowledged_present: int = 0
    warned: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    reads: int = 0
    reads_back: int = 0
    furthest_back: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def whole_again(self) -> bool:
        return self.rejoin_s is not None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def require_whole(target: Target) -> str:
    """The leader of a cluster that is whole. Raises NotWhole with the reason."""
    _, why = wait_until(target.settled, WHOLE_SECONDS)
    leader = "" if why else leader_of(target.views())
    if not leader:
        raise NotWhole(f"the cluster is not whole after {WHOLE_SECONDS:.0f} s: {why or 'nobody leads'}")
    return leader


def play(
    target: Target,
    fault: Fault,
    seed: int,
    number: int,
    outside: list[str],
    evidence: Path,
    table: str = TABLE,
    database: str = DATABASE,
    direct: bool = True,
) -> Result:
    """Run one round and say what it showed.

    Every attempt goes to the folder `evidence`, the hosts' logs too where there are problems.
    """
    chance = random.Random(f"{seed}/{fault.name}/{number}")
    leader = require_whole(target)
    make_table(target.lab, leader, table, database)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    result = Result(fault.name, seed, number, now, load_average(), leader, fault.expect)
    scene = Scene(target.lab, target.nodes, outside, leader, chance)
    watch = Watch(target, f"{fault.name}-{seed}-{number}-{int(time.time())}", table, database, direct)
    watch.start()
    try:
        began, undoing = _do_and_undo(fault, scene, watch, result)
        observed = undoing
        if fault.expect in (faults.SAME_LEADER, faults.RESUMES):
            _resumed(watch, undoing, OUTAGE_SECONDS)
            observed = time.monotonic()
        _, why = wait_until(target.settled, REJOIN_SECONDS)
        if why:
            result.problems.append(f"not whole {REJOIN_SECONDS:.0f} s after the fault was undone: {why}")
        else:
            result.rejoin_s = round(time.monotonic() - undoing, 2)
        time.sleep(SETTLE_SECONDS)
    finally:
        watch.stop()
    _outcome(result, watch.attempts, began, observed)
    _verdict(result, target, watch, table, database)
    if fault.flawless and result.failed:
        result.problems.append(f"statements failed: {result.failed}")
    evidence.mkdir(parents=True, exist_ok=True)
    _write_attempts(evidence / "attempts.txt", watch.attempts, began)
    if result.problems:
        target.evidence(evidence)
    return result


def _do_and_undo(fault: Fault, scene: Scene, watch: Watch, result: Result) -> tuple[float, float]:
    """The moments (monotonic) of the fault and of its undoing."""
    time.sleep(scene.chance.uniform(2.0, 6.0))
    if not watch.acknowledged_since(0):
        raise NotWhole("no client was acknowledged before the fault")
    began = time.monotonic()
    try:
        fault.do(scene)
        done = time.monotonic()
        if fault.expect == faults.FAILOVER:
            _resumed(watch, began, OUTAGE_SECONDS, lambda a: a.server != scene.leader)
            time.sleep(SETTLE_SECONDS)
        time.sleep(max(0.0, done + fault.hold - time.monotonic()))
    except LabError as error:
        result.problems.append(f"the fault itself failed: {error}")
    undoing = time.monotonic()
    try:
        fault.undo(scene)
    except LabError as error:
        result.problems.append(f"undoing the fault failed: {error}")
    return began, undoing


def _resumed(watch: Watch, since: float, seconds: float, which: Callable[[Attempt], bool] = lambda _: True) -> None:
    wait_until(lambda: "" if any(map(which, watch.acknowledged_since(since))) else "silence", seconds, every=0.1)


def _outcome(result: Result, attempts: list[Attempt], began: float, until: float) -> None:
    gap = stall(attempts, began, until)
    result.stall_s = round(gap.seconds, 3)
    seen = [a for a in attempts if a.acknowledged and a.start > began and a.end <= until]
    after = [a for a in seen if not a.direct and a.start > gap.begins]
    last = max(after, key=lambda a: a.end, default=None)
    if gap.ends is None and gap.seconds > GOES_ON_SECONDS:
        result.outcome = faults.BLOCKS
    elif last is not None and last.server != result.leader:
        result.outcome, result.successor = faults.FAILOVER, last.server
    elif last is not None and result.expected in (faults.SAME_LEADER, faults.RESUMES):
        result.outcome = faults.SAME_LEADER
    elif gap.seconds <= GOES_ON_SECONDS:
        result.outcome = faults.GOES_ON
    else:
        result.outcome = f"stalled {gap.seconds:.1f} s, same leader"
    wanted = {result.expected}
    if result.expected == faults.RESUMES:
        wanted = {faults.FAILOVER, faults.SAME_LEADER}
    if result.outcome not in wanted:
        result.problems.append(f"outcome: {result.outcome}, expected: {result.expected}")


def _verdict(result: Result, target: Target, watch: Watch, table: str, database: str) -> None:
    """Rows are read from every server that answers: each must hold what the leader holds."""
    seen = target.views()
    leader = leader_of(seen)
    held = rows(target.lab, leader, watch.run, table, database) if leader else None
    if held is None:
        result.problems.append(f"rows cannot be read: {'nobody leads' if not leader else leader + ' does not answer'}")
        return
    verdict: Verdict = judge(watch.attempts, held, watch.reads)
    result.acknowledged, result.lost = verdict.acknowledged, verdict.lost
    result.unacknowledged_present, result.warned = verdict.unacknowledged_present, verdict.warned
    result.failed = dict(verdict.failed)
    result.reads, result.reads_back, result.furthest_back = verdict.reads, verdict.reads_back, verdict.furthest_back
    result.problems += verdict.violations
    for node in sorted(set(seen) - {leader}):

        def differs(node: str = node) -> str:
            theirs = rows(target.lab, node, watch.run, table, database)
            return "" if theirs == held else f"{node} holds other rows than {leader}"

        if result.whole_again and (why := wait_until(differs, 20.0)[1]):
            result.problems.append(why)


def _write_attempts(path: Path, attempts: list[Attempt], began: float) -> None:
    """Readable, times relative to the fault."""
    lines = [
        f"{a.start - began:9.3f} {a.end - began:9.3f} {a.client}/{a.seq} {a.outcome} {a.server} {a.timeline} {a.detail}"
        for a in sorted(attempts, key=lambda a: a.start)
    ]
    path.write_text("\n".join(lines) + "\n")
