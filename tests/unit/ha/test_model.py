"""The short form of `make model`: small bounds explored to their end, random runs, and every mistake found."""

from __future__ import annotations

import pytest

from tests.model.explore import follow, search, show, walk
from tests.model.model import Bounds, Model
from tests.model.mutations import MUTATIONS, Mutation, fence
from tests.model.recovery import recover

COMPLETE = (
    Bounds("b", commits=1, attempts=1, crashes=1, epochs=2),
    Bounds("bc", commits=1, attempts=1, demotes=1, epochs=2),
    Bounds("bcd", commits=1, attempts=1, epochs=2),
)


@pytest.mark.parametrize("bounds", COMPLETE, ids=lambda bounds: f"{len(bounds.followers)}-followers")
def test_no_state_within_small_bounds_breaks_an_invariant(bounds: Bounds) -> None:
    model = Model(bounds)
    result = search(model, 60, lambda state: recover(model, state), every=50)
    assert not result.violation, f"{result.violation}\n{show(result.trace, bounds.initial())}"
    assert result.complete


@pytest.mark.parametrize("followers", ["b", "bc", "bcd"])
def test_random_runs_with_everything_at_once_break_no_invariant(followers: str) -> None:
    bounds = Bounds(followers, commits=3, attempts=4, crashes=2, changes=2, demotes=1, epochs=5)
    model = Model(bounds)
    result = walk(model, 60, 1, lambda state: recover(model, state), steps=20_000)
    assert not result.violation, f"{result.violation}\n{show(result.trace, bounds.initial())}"
    assert result.depth > 40


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mistake_is_found(mutation: Mutation) -> None:
    result = mutation.search(30)
    assert result.violation[:2] in mutation.breaks.split(), f"{result.states} states and no counterexample"
    assert result.trace


def test_a_failover_and_the_old_leaders_return() -> None:
    """What the model can do: a commit, a failover, a commit under the new rule, the old leader back and in the rule."""
    model = Model(Bounds("bcd", commits=2, changes=1))
    script = (
        "a: commit\nb: flush\nc: flush\n"
        + fence(1, 2, "bd")
        + """controller 1 at epoch 2 decides: b leads [2.0 b>cd]
        b: row [2.0 b>cd]
        repoint: d follows b
        d: flush
        d: flush
        b: final [2.0 b>cd]
        b: commit
        d: flush
        rejoin: a follows b
        b: change [2.1 b>acd]
        """
    )
    state = follow(model, script)[-1][1]
    assert len(state.acked) == 2
    assert recover(model, state) == ""


def test_a_script_that_cannot_happen_is_refused() -> None:
    with pytest.raises(LookupError, match="no step 'b: commit'"):
        follow(Model(Bounds()), "b: commit")
