"""The lock and the journal of rolling updates, as files of the hosts that keep them (the keepers).

A keeper knows its own two files only. That a majority of the keepers must have granted a lock, and which journal is
the newest, is decided on the control node (filter_plugins/rollout.py). Runs on the hosts, on the standard library.

    <directory>/lock.json       there while a run holds the lock: {run, owner, at}
    <directory>/journal.json    the journal of the last roll, finished or not
    <directory>/history/        the finished ones before it

A file is replaced by a rename of a flushed one, so what is there is whole.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIRECTORY = "/var/lib/devmentor/rollout"
HISTORY = 20
EVIDENCE = 500
OPEN = ("running", "failed")
CLOSED = ("finished", "rolled_back", "abandoned")

Document = dict[str, Any]


class RolloutError(Exception):
    """What cannot be done or read; the message says what, where and the remedy."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _read(path: Path, remedy: str) -> Document:
    """{} where there is no file. Raises RolloutError where it cannot be understood."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RolloutError(f"{path} cannot be read ({error}). Remedy: {remedy}") from error
    if not isinstance(document, dict):
        raise RolloutError(f"{path} holds no object. Remedy: {remedy}")
    return document


def _flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _written(directory: Path, document: Document) -> Any:
    """A flushed temporary file with the document; gone afterwards unless it was renamed."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".new-", delete=False, encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        yield Path(file.name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)


class Lock:
    """One keeper's part of the platform's lock."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock.json"

    def show(self, run: str = "") -> Document:
        """{held, mine, run, owner, age_s}; age_s by this host's clock, in whole seconds."""
        lock = _read(self._path, "look whether a rolling update runs (its owner knows); if none does, remove the file.")
        if not lock:
            return {"held": False, "mine": False, "run": "", "owner": "", "age_s": 0}
        try:
            age = max(0, int(time.time() - self._path.stat().st_mtime))
        except FileNotFoundError:
            age = 0
        name = str(lock.get("run", ""))
        return {
            "held": True,
            "mine": bool(run) and name == run,
            "run": name,
            "owner": str(lock.get("owner", "")),
            "age_s": age,
        }

    def acquire(self, run: str, owner: str, take_over: str = "", check: bool = False) -> tuple[bool, Document]:
        """(changed, what show says then). Another run's lock stays, unless it is the one of `take_over`."""
        seen = self.show(run)
        if seen["mine"] or (seen["held"] and seen["run"] != take_over):
            return False, seen
        if check:
            return True, {**seen, "held": True, "mine": True, "run": run, "owner": owner, "age_s": 0}
        with _written(self._path.parent, {"run": run, "owner": owner, "at": _now()}) as new:
            if seen["held"]:
                new.replace(self._path)
            else:
                # A link fails where somebody was faster; a rename would not.
                with contextlib.suppress(FileExistsError):
                    os.link(new, self._path)
        _flush_directory(self._path.parent)
        found = self.show(run)
        return bool(found["mine"]), found

    def release(self, run: str, check: bool = False) -> tuple[bool, Document]:
        """Removes the lock of this run; another's stays. (changed, what show says then)."""
        seen = self.show(run)
        if not seen["mine"]:
            return False, seen
        if not check:
            self._path.unlink()
            _flush_directory(self._path.parent)
        return True, {"held": False, "mine": False, "run": "", "owner": "", "age_s": 0}


class Journal:
    """One keeper's copy of the journal. `seq` counts its entries; the caller gives it, so that all copies agree."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "journal.json"

    def read(self) -> Document:
        """{} where nothing was ever rolled."""
        document = _read(self._path, "copy the file from another keeper of the journal, or remove it if that has none.")
        if document and not (isinstance(document.get("seq"), int) and isinstance(document.get("steps"), list)):
            raise RolloutError(f"{self._path} is no journal. Remedy: copy the file from another keeper.")
        return document

    def write(self, document: Mapping[str, Any], check: bool = False) -> tuple[bool, Document]:
        """Puts a whole, newer journal in place: one that begins, or the newest for a keeper that was away.

        Raises RolloutError for an older one, and for another target while one is open.
        """
        have, want = self.read(), _bounded(document)
        if have == want:
            return False, have
        if have and have["run"] == want["run"] and want["seq"] <= have["seq"]:
            raise RolloutError(
                f"{self._path} is at entry {have['seq']} of {have['run']}, not before entry {want['seq']}. "
                "Remedy: read the journal again; another run may have written to it."
            )
        if have and have["run"] != want["run"] and have.get("state") in OPEN and want["kind"] != "rollback":
            raise RolloutError(
                f"{self._path}: {have['run']} is {have['state']}. Remedy: finish it by running its playbook again, or "
                "take it back with playbooks/rollback.yml."
            )
        if not check:
            self._put(want, keep=bool(have) and have["run"] != want["run"])
        return True, want

    def step(self, seq: int, step: Mapping[str, Any], check: bool = False) -> tuple[bool, Document]:
        """Adds an entry. The same one again is no change; a gap means that this keeper missed some: RolloutError."""
        document = self.read()
        if not document:
            raise RolloutError(f"{self._path} is not there: the roll was not begun on this keeper. Remedy: run again.")
        record = _bounded_step({**step, "seq": seq})
        if any({**old, "at": ""} == {**record, "at": ""} for old in document["steps"][-1:]):
            return False, document
        if seq != document["seq"] + 1:
            raise RolloutError(
                f"{self._path} is at entry {document['seq']}; entry {seq} does not follow. Remedy: run again, which "
                "brings every keeper to the newest journal first."
            )
        document["steps"].append({**record, "at": _now()})
        document["seq"] = seq
        # A host that went back after a failure leaves the roll failed.
        document["state"] = {"failed": "failed", "went_back": document["state"]}.get(str(step.get("phase")), "running")
        if not check:
            self._put(document)
        return True, document

    def finish(self, seq: int, state: str, check: bool = False) -> tuple[bool, Document]:
        """Closes the journal as `state`, one of CLOSED."""
        if state not in CLOSED:
            raise RolloutError(f"state is {state!r}, not one of {', '.join(CLOSED)}.")
        document = self.read()
        if not document or document.get("state") == state:
            return False, document
        document.update(seq=seq, state=state, ended=_now())
        if not check:
            self._put(document)
        return True, document

    def _put(self, document: Document, keep: bool = False) -> None:
        if keep:
            history = self._directory / "history"
            history.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                old = self.read()
                os.replace(self._path, history / f"{old['run']}.json")
            for stale in sorted(history.glob("*.json"))[:-HISTORY]:
                stale.unlink()
            _flush_directory(history)
        with _written(self._directory, document) as new:
            new.replace(self._path)
        _flush_directory(self._directory)


def _bounded_step(step: Mapping[str, Any]) -> Document:
    return {key: value[:EVIDENCE] if isinstance(value, str) else value for key, value in step.items()}


def _bounded(document: Mapping[str, Any]) -> Document:
    bounded = copy.deepcopy(dict(document))
    missing = {"run", "kind", "target", "steps", "state", "seq"} - set(bounded)
    if missing:
        raise RolloutError(f"a journal needs {', '.join(sorted(missing))}.")
    bounded["steps"] = [_bounded_step(step) for step in bounded["steps"]]
    return bounded
