"""Who keeps the lock and the journal of rolling updates, and what their answers mean together. Pure functions."""

from __future__ import annotations

import datetime
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.rollout import OPEN, place, turns_left

KEEPERS = 3


def rollout_keepers(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Up to three hosts: the first of the platform by name.

    Hosts that are offline count, as keepers that do not answer: a majority of other hosts would not share one with
    the majority that has the newest journal, or with the one that has granted the lock.
    """
    return sorted(set(groups["all"]))[:KEEPERS]


def rollout_answers(name: str, keepers: Sequence[str], hostvars: Any) -> dict[str, Any]:
    """Keeper -> what it registered under `name`; without those that registered nothing."""
    return {keeper: hostvars[keeper][name] for keeper in keepers if name in hostvars[keeper]}


def _answers(answers: Mapping[str, Any], keepers: Sequence[str], key: str) -> tuple[dict[str, Any], list[str]]:
    """(keeper -> its answer, "keeper: why" of those that gave none)."""
    good = {
        name: answers[name]
        for name in keepers
        if isinstance(answers.get(name), Mapping) and key in answers[name] and not answers[name].get("failed")
    }
    return good, [
        f"{name}: {(answers.get(name) or {}).get('msg') or 'did not answer'}" for name in keepers if name not in good
    ]


def lock_verdict(answers: Mapping[str, Any], keepers: Sequence[str]) -> dict[str, Any]:
    """{held, msg}: whether a majority of all keepers has granted the lock, else who has it or did not answer."""
    good, silent = _answers(answers, keepers, "mine")
    granted = [name for name, answer in good.items() if answer["mine"]]
    if len(granted) > len(keepers) // 2:
        return {"held": True, "msg": ""}
    others = {answer["run"]: answer for answer in good.values() if answer["held"] and not answer["mine"]}
    said = [
        f"{run} of {lock['owner'] or 'unknown'} has held it for {datetime.timedelta(seconds=lock['age_s'])}"
        for run, lock in sorted(others.items())
    ]
    said += silent
    remedy = (
        f"wait until it has ended; if its control node is gone, pass -e rollout_take_over={sorted(others)[0]}"
        if others
        else f"mend these keepers; {len(keepers) // 2 + 1} of {len(keepers)} are needed"
    )
    return {
        "held": False,
        "msg": f"The lock of rolling updates is not had: {'; '.join(said)}. Nothing was changed. Remedy: {remedy}.",
    }


def journal_newest(answers: Mapping[str, Any], keepers: Sequence[str]) -> dict[str, Any]:
    """The journal with the newest entry. Raises AnsibleFilterError where no majority of the keepers could read theirs.

    Every entry was written to a majority, so any majority has the newest one.
    """
    good, silent = _answers(answers, keepers, "journal")
    if len(good) <= len(keepers) // 2:
        raise AnsibleFilterError(
            f"The journal of rolling updates is unknown: {len(good)} of {len(keepers)} keepers could read it, "
            f"{len(keepers) // 2 + 1} are needed. {'; '.join(silent)}"
        )
    journals = [dict(answer["journal"]) for answer in good.values() if answer["journal"]]
    return max(journals, key=place, default={})


def journal_kept(answers: Mapping[str, Any], keepers: Sequence[str], seq: int) -> str:
    """Why entry `seq` does not count as written: fewer than a majority of the keepers have it. Empty where it does."""
    good, silent = _answers(answers, keepers, "journal")
    if sum(answer["journal"].get("seq") == seq for answer in good.values()) > len(keepers) // 2:
        return ""
    why = "; ".join(silent) or "they have another one"
    return f"Entry {seq} of the journal is not on a majority of {', '.join(keepers)}: {why}."


def rollout_refusal(journal: Mapping[str, Any], kind: str, target: Mapping[str, Any]) -> str:
    """Why a roll must not begin: another one is open. Empty where it may. A rollback may always."""
    if kind == "rollback" or journal.get("state") not in OPEN:
        return ""
    if (journal["kind"], dict(journal["target"])) == (kind, dict(target)):
        return ""
    opened = f"{journal['kind']} {journal['run']} is {journal['state']} and wants {_short(journal['target'])}"
    return (
        f"{opened}; this {kind} wants {_short(target)}. Nothing was changed. Remedy: finish that one by running its "
        "playbook with its inventory again, take it back with playbooks/rollback.yml, or "
        f"give it up: -e rollout_abandon={journal['run']}."
    )


def _short(target: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(target.items()) if value) or "nothing"


def rollout_document(
    journal: Mapping[str, Any], run: str, kind: str, target: Mapping[str, Any], owner: str
) -> dict[str, Any]:
    """The journal that this run writes first: the open one, resumed, or a new one. Both are newer than `journal`.

    journal: the newest, or {}; in the state `abandoned` the new one says so, which opens the keepers for it.
    """
    term, seq = place(journal) if journal else (0, 0)
    now = {
        "term": term + 1,
        "seq": seq + 1,
        "after": [term, seq],
        "state": "running",
        "writer": run,
        "owner": owner,
    }
    if journal.get("state") in OPEN and journal["kind"] == kind:
        return {**journal, **now}
    # What a rollback takes back is in the journal before it.
    steps = [dict(step) for step in journal.get("steps", ())] if kind == "rollback" else []
    return {
        "run": run,
        "kind": kind,
        "target": dict(target),
        "steps": steps,
        **({"abandons": journal["run"]} if journal.get("state") == "abandoned" else {}),
        **now,
    }


def rollout_before(journal: Mapping[str, Any], tier: str, host: str) -> str:
    """The releases that a host ran before the roll began with it, by spaces; empty where the journal does not say."""
    for step in journal.get("steps", ()):
        if (step["tier"], step["host"]) == (tier, host) and step.get("before"):
            return str(step["before"])
    return ""


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "journal_kept": journal_kept,
            "journal_newest": journal_newest,
            "lock_verdict": lock_verdict,
            "rollout_answers": rollout_answers,
            "rollout_before": rollout_before,
            "rollout_document": rollout_document,
            "rollout_keepers": rollout_keepers,
            "rollout_refusal": rollout_refusal,
            "rollout_turns_left": turns_left,
        }
