"""`make chaos-qwen`: faults on the whole platform under load, and what its clients saw.

    python -m tests.chaos.qwen.run --rounds 1 --seed 7 --fault engine_killed,pbml_all [--keep]

Results go to .cache/bench/chaos-qwen.json, and from there into docs/qwen-chaos.md. Rounds without findings that are
there for this commit, seed and rate are left out, so an interrupted run goes on where it was. Exits 1 where there is a
finding.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos import campaign
from tests.chaos.qwen import report
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.qwen.faults import FAULTS
from tests.chaos.qwen.rounds import play


def line(entry: dict[str, Any]) -> str:
    recovery = "never" if entry["recovery_s"] is None else f"{entry['recovery_s']:.1f} s"
    errors = ", ".join(f"{name} {count}" for name, count in entry["errors"].items()) or "no errors"
    where = f" ({', '.join(entry['where'])})" if entry["where"] else ""
    return (
        f"{entry['fault']:<15} #{entry['round']}{where}: {entry['ok']} of {entry['requests']} ok, {errors}, worst gap "
        f"{entry['worst_gap_s']:.1f} s, recovered after {recovery}, load {entry['load'][1]}"
    )


def one(rate: float, deployed: Deployed, name: str, seed: int, number: int, evidence: Path) -> dict[str, Any]:
    return play(deployed, FAULTS[name], seed, number, rate, evidence)


def main(arguments: list[str] | None = None) -> int:
    parser = campaign.arguments_parser("chaos-qwen", __doc__ or "", FAULTS, report.PAGE)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    options = parser.parse_args(arguments)
    names = campaign.wanted_faults(parser, options.fault, FAULTS)
    return campaign.Campaign(
        "qwen",
        report.RESULT,
        partial(one, options.rate),
        line,
        report.write,
        same=lambda entry: bool(entry["rate"] == options.rate),
        prepare=Deployed.teach,
    ).run(options, names)


if __name__ == "__main__":
    sys.exit(main())
