"""`make model`: the protocol explored to stated bounds, and every mistake found. Exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields

from .explore import Result, search, show, walk
from .model import Bounds, Model
from .mutations import MUTATIONS
from .recovery import recover


@dataclass(frozen=True)
class Part:
    """One search of the protocol. `share`: of the whole time; `random`: runs (they found most), not breadth first."""

    what: str
    bounds: Bounds
    share: float
    random: bool = False


PARTS = (
    Part("one attempt, a crash, a switchover", Bounds("bc", commits=1, attempts=1, crashes=1, demotes=1, epochs=2), 2),
    Part("one attempt while the followers change", Bounds("bc", commits=1, attempts=1, changes=1, epochs=2), 2),
    Part("two attempts at once, one follower", Bounds("b", commits=1, epochs=2), 2),
    Part("two attempts at once, three followers", Bounds("bcd", commits=1), 4),
    *(
        Part(
            f"everything, {len(followers)} follower{'s' * (len(followers) > 1)}",
            Bounds(followers, commits=3, attempts=4, crashes=2, changes=2, demotes=1, epochs=5),
            4 if followers == "b" else 6,
            random=True,
        )
        for followers in ("b", "bc", "bcd")
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--seconds", type=float, default=900, help="for the protocol; mistakes take a few more")
    parser.add_argument("--seed", type=int, default=1, help="of the random runs")
    parser.add_argument("--traces", action="store_true", help="shows how each mistake does harm")
    options = parser.parse_args()
    wrong = 0
    whole = sum(part.share for part in PARTS)
    print("The protocol. A way back (I7) is tried from each random run's end and from each 50th state of a search.")
    for part in PARTS:
        result = run(part, options.seconds * part.share / whole, options.seed)
        print(f"  {part.what}: {_bounds(part.bounds)}\n    {_explored(part, result)}", flush=True)
        if result.violation:
            wrong += 1
            print(f"    {result.violation}\n{show(result.trace, part.bounds.initial())}")
    print("Mistakes, and the length of the run that shows the harm:")
    for mutation in MUTATIONS:
        result = mutation.search(60)
        found = result.violation[:2] in mutation.breaks.split()
        wrong += not found
        said = "found" if found else "MISSED"
        print(f"  {said} {len(result.trace):3} steps, {result.states:5} states  {mutation.what}")
        print(f"            {result.violation}", flush=True)
        if options.traces:
            print(show(result.trace, mutation.bounds.initial()))
    return 1 if wrong else 0


def run(part: Part, seconds: float, seed: int) -> Result:
    model = Model(part.bounds)
    if part.random:
        return walk(model, seconds, seed, lambda state: recover(model, state))
    return search(model, seconds, lambda state: recover(model, state), every=50)


def _bounds(bounds: Bounds) -> str:
    names = [field.name for field in fields(bounds) if field.name != "rewinds"]
    return ", ".join(f"{name} {getattr(bounds, name)}" for name in names)


def _explored(part: Part, result: Result) -> str:
    if part.random:
        return f"{result.states} random steps, longest run {result.depth}, {result.seconds:.0f} s"
    extent = "all of them" if result.complete else "no more for want of time"
    return f"{result.states} states to depth {result.depth}, {extent}, {result.seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
