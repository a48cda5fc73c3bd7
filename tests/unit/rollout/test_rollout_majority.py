"""What the keepers' answers mean together: a majority of all of them, or nothing."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

_spec = importlib.util.spec_from_file_location(
    "rollout_filters", Path(__file__).resolve().parents[3] / "filter_plugins/rollout.py"
)
assert _spec is not None
assert _spec.loader is not None
rollout = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rollout)

KEEPERS = ["h1", "h2", "h3"]
MINE = {"held": True, "mine": True, "run": "r2", "owner": "bob", "age_s": 0}
OTHERS = {"held": True, "mine": False, "run": "r1", "owner": "anna@c1", "age_s": 3700}
BROKEN = {"failed": True, "msg": "lock.json cannot be read"}


def test_the_keepers_are_the_first_three_hosts_that_are_not_offline() -> None:
    groups = {"all": ["h4", "h2", "h1", "h3"], "offline": ["h2"]}
    assert rollout.rollout_keepers(groups, groups["offline"]) == ["h1", "h3", "h4"]
    assert rollout.rollout_keepers({"all": ["only"]}, []) == ["only"]


@pytest.mark.parametrize(
    ("answers", "held"),
    [
        ([MINE, MINE, MINE], True),
        ([MINE, MINE, BROKEN], True),
        ([MINE, MINE, None], True),
        ([MINE, OTHERS, None], False),
        ([MINE, None, None], False),
        ([MINE, BROKEN, BROKEN], False),
        ([OTHERS, OTHERS, MINE], False),
        ([None, None, None], False),
    ],
)
def test_a_majority_of_all_keepers_grants_the_lock(answers: list[Any], held: bool) -> None:
    given = {name: answer for name, answer in zip(KEEPERS, answers, strict=True) if answer is not None}
    verdict = rollout.lock_verdict(given, KEEPERS)
    assert verdict["held"] is held
    assert ("Remedy" in verdict["msg"]) is not held


def test_a_refused_lock_names_owner_age_and_how_to_take_it_over() -> None:
    said = rollout.lock_verdict({"h1": OTHERS, "h2": OTHERS}, KEEPERS)["msg"]
    assert "r1 of anna@c1 has held it for 1:01:40" in said
    assert "h3 did not answer" in said
    assert "-e rollout_take_over=r1" in said


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2)])
def test_with_fewer_keepers_a_majority_is_a_majority_of_them(count: int, needed: int) -> None:
    keepers = KEEPERS[:count]
    for granted in range(count + 1):
        answers = dict.fromkeys(keepers[:granted], MINE)
        assert rollout.lock_verdict(answers, keepers)["held"] is (granted >= needed)


def kept(run: str, seq: int, **more: Any) -> dict[str, Any]:
    update = {"kind": "update", "target": {"release": "1"}, "state": "running"}
    return {"journal": {"run": run, "seq": seq, **update, **more}}


def test_the_newest_journal_of_a_majority_counts() -> None:
    newer = {"h1": kept("r1", 9), "h2": kept("r2", 1), "h3": kept("r1", 8)}
    assert rollout.journal_newest(newer, KEEPERS)["run"] == "r2"
    assert rollout.journal_newest({"h1": kept("r1", 9), "h3": kept("r1", 8)}, KEEPERS)["seq"] == 9
    assert rollout.journal_newest({"h1": {"journal": {}}, "h2": {"journal": {}}}, KEEPERS) == {}


def test_without_a_majority_the_journal_is_unknown_and_says_who_did_not_answer() -> None:
    with pytest.raises(AnsibleFilterError, match=r"h2: lock\.json cannot be read; h3: no answer"):
        rollout.journal_newest({"h1": kept("r1", 1), "h2": BROKEN}, KEEPERS)


def test_an_entry_counts_once_a_majority_has_it() -> None:
    assert rollout.journal_kept({"h1": kept("r1", 4), "h2": kept("r1", 4)}, KEEPERS, 4) == ""
    full = {"failed": True, "msg": "No space left on device"}
    said = rollout.journal_kept({"h1": kept("r1", 4), "h2": full}, KEEPERS, 4)
    assert "h2: No space left on device" in said
    assert "h3: no answer" in said


def test_another_target_waits_and_the_same_one_goes_on() -> None:
    journal = kept("r1", 4)["journal"]
    assert rollout.rollout_refusal(journal, "update", {"release": "1"}) == ""
    for kind, target in (("update", {"release": "2"}), ("restart", {})):
        said = rollout.rollout_refusal(journal, kind, target)
        assert "update r1 is running" in said
        assert "-e rollout_abandon=r1" in said
    assert rollout.rollout_refusal(journal, "rollback", {"release": "2"}) == ""
    assert rollout.rollout_refusal({**journal, "state": "finished"}, "update", {"release": "2"}) == ""
    assert rollout.rollout_refusal({}, "update", {"release": "2"}) == ""


def test_a_run_goes_on_with_the_open_journal_or_begins_a_new_one() -> None:
    journal = kept("r1", 4, steps=[{"tier": "qwen", "host": "h1", "phase": "done", "before": "0"}])["journal"]
    resumed = rollout.rollout_document(journal, "r2", "update", {"release": "1"}, "bob")
    assert (resumed["run"], resumed["seq"], resumed["resumed_by"], len(resumed["steps"])) == ("r1", 5, "r2", 1)
    begun = rollout.rollout_document({**journal, "state": "finished"}, "r2", "update", {"release": "2"}, "bob")
    assert (begun["run"], begun["seq"], begun["steps"]) == ("r2", 1, [])
    back = rollout.rollout_document(journal, "r3", "rollback", {"release": "2"}, "bob")
    assert (back["run"], back["kind"], back["steps"]) == ("r3", "rollback", journal["steps"])
    assert rollout.rollout_before(back, "qwen", "h1") == "0"
    assert rollout.rollout_before(back, "qwen", "h2") == ""
