"""`make bench-rolling`: what clients notice of a rolling update, beside the restarts that the field does without one.

    python -m tests.bench.rolling.run [--arms check,update,restart,plain] [--baseline 60] [--keep]

Under one constant load (load.py) each arm has a baseline, then its playbook runs, then the load goes on for a little.
The result goes to .cache/bench/rolling.json; report.py writes docs/rolling-bench.md from it. Exits 1 where a request of
the platform's own arms failed, something acknowledged is lost, or a playbook failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lab.errors import LabError
from tests.bench.rolling import newer, records, report, serving
from tests.bench.rolling.load import Load, Result, add_rates, rates_of, summary_lines, write
from tests.chaos.campaign import INVENTORY, have
from tests.chaos.postgres.run import commit
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.qwen.rounds import NotWhole, require_whole
from tools import ask
from tools.inventory_vars import InventoryError
from tools.runs import ROOT, Run, RunError, lab, playbook_file

PLAIN = Path(__file__).with_name("plain_restart.yml").relative_to(ROOT)
ARMS = {
    # The floor: the plan alone. What a playbook itself costs the clients where it shares their processors.
    "check": "playbooks/rolling_update.yml -e tier=all --check",
    "update": "playbooks/rolling_update.yml -e tier=all",
    "restart": "playbooks/restart.yml -e tier=all",
    "plain": str(PLAIN),
}
OWN = ("check", "update", "restart")
EVIDENCE = ROOT / ".cache" / "bench" / "rolling"
BEGAN, ENDED = "began", "ended"
AFTER_S = 30.0
PLAYBOOK_S = 5400.0


def told(result: Result, status: int, seconds: float) -> dict[str, Any]:
    """What an arm showed: numbers before its playbook, and from its beginning until the load's end."""
    began, ended = result.between(BEGAN)
    before, during = records.within(result.records, 0, began), records.within(result.records, began, ended)
    samples = [each for each in result.serving if each.at >= began]
    return {
        "at": result.at,
        "status": status,
        "seconds": round(seconds, 1),
        "baseline_s": began,
        "watched_s": round(ended - began, 1),
        "before": records.summary(before, began),
        "during": records.summary(during, ended - began, before),
        "least_serving": {tier: serving.least(samples, tier) for tier in serving.TIERS},
        "usual_serving": {
            tier: serving.least([s for s in result.serving if s.at < began], tier) for tier in serving.TIERS
        },
        "serving_unknown": serving.unknown(samples),
        "lost": result.lost,
        "problems": result.problems,
        "behind_s": result.behind_s,
        "load": result.load,
        "failures": records.failures(during)[:50],
        "timeline": timeline(before, during, began),
    }


def timeline(before: list[records.Record], during: list[records.Record], began: float) -> list[dict[str, Any]]:
    """By second since the playbook began: requests, those that failed by kind, and those that were slow."""
    limits = {kind: records.slow_limit(before, kind) for kind in records.KINDS}
    seconds: dict[int, list[records.Record]] = {}
    for each in during:
        seconds.setdefault(int(each.scheduled - began), []).append(each)
    return [
        {
            "second": second,
            "requests": len(found),
            "failed": dict(Counter(each.kind for each in found if each.failed)),
            "slow": sum(not each.failed and each.latency_s > limits[each.kind] for each in found),
        }
        for second, found in sorted(seconds.items())
    ]


def under_load(deployed: Deployed, words: list[str], options: argparse.Namespace) -> tuple[Result, Run]:
    """The playbook under load. Raises RunError where it does not end in time, what breaks the load, LabError."""
    load = Load(deployed, rates_of(options), options.on)
    load.start()
    try:
        time.sleep(options.baseline)
        load.mark(BEGAN)
        path, *arguments = words
        done = playbook_file(Path(path), deployed.inventory, *arguments, timeout=PLAYBOOK_S, show=options.show)
        load.mark(ENDED)
        time.sleep(AFTER_S)
    finally:
        result = load.stop()
    return result, done


def arm(deployed: Deployed, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One arm. Every request goes to a file of its own, the playbook's output beside it."""
    words = shlex.split(options.command if name == "update" and options.command else ARMS[name])
    if name == "update":
        chosen = [each for each in options.packages.split(",") if each]
        words += newer.variables(f"bench-{int(time.time())}", newer.packages(deployed, chosen))
    require_whole(deployed)
    print(f"{name}: {shlex.join(words)}", flush=True)
    result, done = under_load(deployed, words, options)
    write(EVIDENCE / f"{name}.json", result)
    (EVIDENCE / f"{name}.log").write_text(done.output)
    print("\n".join(["  " + line for line in summary_lines(result)]), flush=True)
    if done.status:
        print(f"  the playbook failed with {done.status}:\n{done.tail(20)}", flush=True)
    return {"command": shlex.join(words), **told(result, done.status, done.seconds)}


def problems(entry: dict[str, Any]) -> int:
    """What an arm of the platform's own must not have."""
    failed = sum(kind["failed"] for kind in entry["during"].values())
    return failed + len(entry["lost"]) + len(entry["problems"]) + bool(entry["status"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-rolling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arms", default="check,update,plain", help=f"of {', '.join(ARMS)}, in this order")
    parser.add_argument("--command", default="", help=f"of the arm `update`, if not: {ARMS['update']}")
    parser.add_argument(
        "--packages", default=",".join(newer.PACKAGES), help=f"that get newer: {', '.join(newer.GROUPS)}"
    )
    parser.add_argument("--baseline", type=float, default=60.0, help="seconds of load before each playbook")
    parser.add_argument("--inventory", type=Path, default=INVENTORY)
    parser.add_argument("--on", default="", help="the host that carries the SQL clients, a QWEN or PBML host")
    parser.add_argument("--keep", action="store_true", help="use the running lab as it is; leave it up at the end")
    parser.add_argument("--show", action="store_true", help="the playbooks' output, too")
    parser.add_argument("--only-look", action="store_true", help="leave docs/rolling-bench.md alone")
    add_rates(parser)
    options = parser.parse_args(arguments)
    names = options.arms.split(",")
    if unknown := sorted(set(names) - set(ARMS)):
        parser.error(f"unknown arm {', '.join(unknown)}; known: {', '.join(ARMS)}")
    if unknown := sorted({each for each in options.packages.split(",") if each} - set(newer.GROUPS)):
        parser.error(f"unknown package {', '.join(unknown)}; known: {', '.join(newer.GROUPS)}")
    version, arms = commit(), {}
    try:
        deployed = have(options.inventory.resolve(), options.keep)
        for name in names:
            arms[name] = {"commit": version, **arm(deployed, name, options)}
            save(report.RESULT, arms, options)
    except (NotWhole, RunError, LabError, ask.AskError, InventoryError) as error:
        print(f"bench-rolling: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            lab(options.inventory, "down").require()
    if not options.only_look:
        report.write(report.RESULT)
    return 1 if any(problems(arms[name]) for name in names if name in OWN) else 0


def save(path: Path, arms: dict[str, Any], options: argparse.Namespace) -> None:
    """Arms that the file has already stay beside those of this run, which replace their own."""
    known = json.loads(path.read_text())["arms"] if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    rates = {kind: getattr(options, kind) for kind in ("chat", "stream", "ingest", "fetch", "sql")}
    new.write_text(json.dumps({"cores": os.cpu_count(), "rates": rates, "arms": {**known, **arms}}, indent=1) + "\n")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
