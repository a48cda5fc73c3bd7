"""What the keepers' journal and lock say, and whether it is true. Pure.

The formats are those of module_utils/devmentor/rollout.py, the majority's rules those of filter_plugins/rollout.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from filter_plugins.rollout import journal_newest

OPEN = ("running", "failed")
DONE, BACK = "done", "went_back"
LOCKED, BEGUN = "locked", "begun"
Document = dict[str, Any]
Moment = tuple[str, str, str]


def newest(copies: Mapping[str, Document | None], keepers: Sequence[str]) -> Document | None:
    """The journal as the roles read it; None where too few keepers could be read. {}: nothing was ever rolled."""
    answers = {name: {"journal": copy} for name, copy in copies.items() if copy is not None}
    try:
        return journal_newest(answers, keepers)
    except AnsibleFilterError:
        return None


def holder(locks: Mapping[str, Document | None], keepers: Sequence[str]) -> tuple[str, str]:
    """(run, owner) of the lock that a majority of the keepers has; empty where none has one."""
    held = Counter((str(lock["run"]), str(lock.get("owner", ""))) for lock in locks.values() if lock)
    found, count = held.most_common(1)[0] if held else (("", ""), 0)
    return found if count > len(keepers) // 2 else ("", "")


def last(journal: Document) -> dict[tuple[str, str], str]:
    """(tier, host) -> the last phase that the journal has of it."""
    return {(step["tier"], step["host"]): str(step["phase"]) for step in journal.get("steps", ())}


def moment(journal: Document | None, run: str, before: Document) -> Moment:
    """How far the roll that has the lock is: an entry (tier, host, phase), or that it has the lock, or a journal
    without an entry of its own. Three empty words where it has not begun.

    `before`: the journal when the roll was started. An entry is the roll's own where the journal has gone on since.
    """
    nothing = "", "", ""
    if journal is None or not run:
        return nothing
    if (journal.get("run"), journal.get("seq")) == (before.get("run"), before.get("seq")):
        return "", "", LOCKED
    if journal.get("state") not in OPEN:
        return "", "", LOCKED
    old = len(before.get("steps", ())) if journal.get("run") == before.get("run") else 0
    steps = journal.get("steps", ())
    if len(steps) <= old:
        return "", "", BEGUN
    return steps[-1]["tier"], steps[-1]["host"], str(steps[-1]["phase"])


def untrue(journal: Document | None, tier: str, current: Mapping[str, str], old: str) -> list[str]:
    """What the journal says of a tier's hosts that is not so; a line for each.

    current: host -> the release that its link names, empty where the host does not answer; `old` is what all of them
    ran before. A host whose turn has begun and not ended may have either; the journal then says that it is open.
    """
    if journal is None:
        return ["no majority of the keepers has a journal that can be read"]
    phases = last(journal)
    state = str(journal.get("state", ""))
    found = []
    for host, release in current.items():
        phase = phases.get((tier, host), "")
        if not release:
            continue
        if phase == DONE and release == old:
            found.append(f"the journal says that {host} is done; it has {release} as before")
        if phase in ("", BACK) and release != old:
            found.append(
                f"the journal says that {host} {'went back' if phase else 'was not touched'}; it has {release}"
            )
        if state not in OPEN and phase not in ("", DONE, BACK):
            found.append(f"the journal is {state or 'empty'}, and {host} is still {phase} in it")
    if state == "finished" and (left := sorted(host for host, release in current.items() if release == old)):
        found.append(f"the journal is finished; {', '.join(left)} have {old} as before")
    if state == "rolled_back" and (
        new := sorted(host for host, release in current.items() if release not in (old, ""))
    ):
        found.append(f"the journal is rolled back; {', '.join(new)} do not have {old}")
    return found
