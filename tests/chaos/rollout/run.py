"""`make chaos-rollout`: faults of a rolling update under load, what its clients saw, and how the roll ended.

    python -m tests.chaos.rollout.run --rounds 1 --seed 7 --fault erring,host_lost [--keep]

Every round rolls QWEN to another release. Results go to .cache/bench/chaos-rollout.json, and from there into
docs/rollout-chaos.md. Rounds without findings that are there for this commit and seed are left out, so an interrupted
run goes on where it was. Exits 1 where there is a finding.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.rolling.load import Rates, add_rates, rates_of
from tests.chaos import campaign
from tests.chaos.qwen.deployed import Deployed
from tests.chaos.rollout import report
from tests.chaos.rollout.faults import FAULTS
from tests.chaos.rollout.rounds import play


def line(entry: dict[str, Any]) -> str:
    where = f" ({', '.join(entry['where'])})" if entry["where"] else ""
    explained = ", ".join(f"{what} {count}" for what, count in entry["explained"].items()) or "none"
    return (
        f"{entry['fault']:<15} #{entry['round']}{where}: {entry['failed']} of {entry['requests']} failed, explained: "
        f"{explained}; {entry['rolls']} rolls in {entry['seconds']:.0f} s, load {entry['load'][1]}"
    )


def one(rates: Rates, deployed: Deployed, name: str, seed: int, number: int, evidence: Path) -> dict[str, Any]:
    return play(deployed, FAULTS[name], seed, number, rates, evidence)


def main(arguments: list[str] | None = None) -> int:
    parser = campaign.arguments_parser("chaos-rollout", __doc__ or "", FAULTS, report.PAGE)
    add_rates(parser)
    options = parser.parse_args(arguments)
    names = campaign.wanted_faults(parser, options.fault, FAULTS)
    return campaign.Campaign("rollout", report.RESULT, partial(one, rates_of(options)), line, report.write).run(
        options, names
    )


if __name__ == "__main__":
    sys.exit(main())
