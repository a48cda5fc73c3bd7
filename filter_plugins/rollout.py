"""Who keeps the lock and the journal of rolling updates, and what their answers mean together. Pure functions."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

KEEPERS = 3
OPEN = ("running", "failed")


def rollout_keepers(groups: Mapping[str, Sequence[str]], offline: Sequence[str]) -> list[str]:
    """Up to three hosts: the first of the platform by name, without those that are offline. Two runs from two
    control nodes with the same inventory ask the same ones."""
    return sorted(set(groups["all"]) - set(offline))[:KEEPERS]


def rollout_answers(name: str, keepers: Sequence[str], hostvars: Any) -> dict[str, Any]:
    """Keeper -> what it registered under `name`; without those that registered nothing."""
    return {keeper: hostvars[keeper][name] for keeper in keepers if name in hostvars[keeper]}


def _answers(answers: Mapping[str, Any], keepers: Sequence[str], key: str) -> tuple[dict[str, Any], list[str]]:
    """(keeper -> its answer, those that gave none)."""
    good = {
        name: answers[name]
        for name in keepers
        if isinstance(answers.get(name), Mapping) and key in answers[name] and not answers[name].get("failed")
    }
    return good, [name for name in keepers if name not in good]


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
    said += [f"{name} did not answer" for name in silent]
    remedy = (
        f"wait until it has ended; if its control node is gone, pass -e rollout_take_over={sorted(others)[0]}"
        if others
        else "mend the hosts that do not answer; two of three are needed"
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
        why = "; ".join(f"{name}: {(answers.get(name) or {}).get('msg', 'no answer')}" for name in silent)
        raise AnsibleFilterError(
            f"The journal of rolling updates is unknown, because too few of its keepers could read it: {why}"
        )
    journals = [dict(answer["journal"]) for answer in good.values() if answer["journal"]]
    # A run's name begins with its time.
    return max(journals, key=lambda journal: (journal["run"], journal["seq"]), default={})


def journal_kept(answers: Mapping[str, Any], keepers: Sequence[str], seq: int) -> str:
    """Why entry `seq` does not count as written: fewer than a majority of the keepers have it. Empty where it does."""
    good, silent = _answers(answers, keepers, "journal")
    if sum(answer["journal"].get("seq") == seq for answer in good.values()) > len(keepers) // 2:
        return ""
    why = "; ".join(f"{name}: {(answers.get(name) or {}).get('msg', 'no answer')}" for name in silent)
    return f"Entry {seq} of the journal is not on a majority of {', '.join(keepers)}: {why or 'they have another one'}."


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
    """The journal that this run writes first: the open one with a further entry number, or a new one."""
    if journal.get("state") in OPEN and journal["kind"] == kind:
        return {**journal, "seq": int(journal["seq"]) + 1, "state": "running", "resumed_by": run, "owner": owner}
    # What a rollback takes back is in the journal before it.
    steps = [dict(step) for step in journal.get("steps", ())] if kind == "rollback" else []
    return {
        "run": run,
        "kind": kind,
        "target": dict(target),
        "owner": owner,
        "state": "running",
        "seq": 1,
        "steps": steps,
    }


def rollout_before(journal: Mapping[str, Any], tier: str, host: str) -> str:
    """The release that a host ran before the roll began with it; empty where the journal does not say."""
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
        }
