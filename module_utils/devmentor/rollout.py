"""The lock and the journal of rolling updates, as files of the hosts that keep them (the keepers).

A keeper knows its own two files only. That a majority of the keepers must have granted a lock, and which journal is
the newest, is decided on the control node (filter_plugins/rollout.py). Runs on the hosts, on the standard library.

    <directory>/lock.json       there while a run holds the lock: {run, owner, at}
    <directory>/journal.json    the journal of the last roll, finished or not
    <directory>/history/        those before it

A file is replaced by a rename of a flushed one, so what is there is whole. See docs/decisions/0072.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DIRECTORY = "/var/lib/devmentor/rollout"
HISTORY = 20
EVIDENCE = 500
OPEN = ("running", "failed")
CLOSED = ("finished", "rolled_back", "abandoned")
# The phases after which a host is whole again.
ENDED = ("done", "went_back")
FREE = {"held": False, "mine": False, "run": "", "owner": "", "age_s": 0}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FIELDS = {"run": str, "kind": str, "target": dict, "steps": list, "state": str, "seq": int}

Document = dict[str, Any]


class RolloutError(Exception):
    """What cannot be done or read; the message says what, where and the remedy."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _named(run: str) -> str:
    """A run's name becomes the name of a file."""
    if not NAME.fullmatch(run):
        raise RolloutError(f"run is {run!r}: letters, digits, '.', '_' and '-' only, 64 at most.")
    return run


def _read(path: Path, remedy: str) -> Document | None:
    """None where there is no file. Raises RolloutError where it cannot be understood."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
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
def _alone(directory: Path, check: bool) -> Iterator[None]:
    """One process at a time reads and writes here; the kernel lets go for one that dies. Check mode writes nothing."""
    if check:
        yield
        return
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _flush_directory(directory.parent)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _put(path: Path, document: Document) -> None:
    """Replaces a file: what is read is the old or the new one, also after a power failure. Within _alone."""
    for left in path.parent.glob(".new-*"):  # by a process that was killed
        left.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _flush_directory(path.parent)


class Lock:
    """One keeper's part of the platform's lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "lock.json"

    def show(self, run: str = "") -> Document:
        """{held, mine, run, owner, age_s}; age_s by this host's clock, in whole seconds.

        Raises RolloutError where the file does not say whose it is: then it is nobody's to take.
        """
        remedy = "look whether a rolling update runs (its owner knows); if none does, remove the file."
        lock = _read(self._path, remedy)
        if lock is None:
            return dict(FREE)
        name = lock.get("run")
        if not isinstance(name, str) or not name:
            raise RolloutError(f"{self._path} names no run. Remedy: {remedy}")
        try:
            age = max(0, int(time.time() - self._path.stat().st_mtime))
        except FileNotFoundError:  # released meanwhile
            return dict(FREE)
        return {"held": True, "mine": name == run, "run": name, "owner": str(lock.get("owner", "")), "age_s": age}

    def acquire(self, run: str, owner: str, take_over: str = "", check: bool = False) -> tuple[bool, Document]:
        """(changed, what show says then). Another run's lock stays, unless it is the one of `take_over`."""
        _named(run)
        with _alone(self._directory, check):
            seen = self.show(run)
            if seen["mine"] or (seen["held"] and seen["run"] != take_over):
                return False, seen
            if not check:
                _put(self._path, {"run": run, "owner": owner, "at": _now()})
            return True, {"held": True, "mine": True, "run": run, "owner": owner, "age_s": 0}

    def release(self, run: str, check: bool = False) -> tuple[bool, Document]:
        """Removes the lock of this run; another's stays. (changed, what show says then)."""
        with _alone(self._directory, check):
            seen = self.show(run)
            if not seen["mine"]:
                return False, seen
            if not check:
                self._path.unlink()
                _flush_directory(self._directory)
            return True, dict(FREE)


class Journal:
    """One keeper's copy of the journal.

    The newest copy is the one with the highest (term, seq): `term` counts the runs that have begun or resumed a roll,
    `seq` the entries. The caller gives both, so that all copies agree. `writer` is the run of the term: entries of
    another one are refused. With `locked`, a keeper takes writes from the run that has its lock and from nobody else:
    a majority that has granted the lock to the next run takes nothing more from the one before.
    """

    def __init__(self, directory: Path, locked: bool = False) -> None:
        self._directory = directory
        self._locked = locked
        self._path = directory / "journal.json"

    def read(self) -> Document:
        """{} where nothing was ever rolled."""
        remedy = "copy the file from another keeper of the journal, or remove it if none has one."
        document = _read(self._path, remedy)
        if document is None:
            return {}
        wrong = [key for key, kind in FIELDS.items() if not isinstance(document.get(key), kind)]
        if document.get("state") not in OPEN + CLOSED:
            wrong.append("state")
        if wrong or not all(isinstance(step, dict) for step in document["steps"]):
            raise RolloutError(f"{self._path} is no journal ({', '.join(wrong) or 'steps'}). Remedy: {remedy}")
        return document

    def must_hold(self, run: str) -> None:
        """Raises RolloutError where this keeper has not granted its lock to the run."""
        seen = Lock(self._directory).show(run)
        if self._locked and not seen["mine"]:
            raise RolloutError(
                f"{self._path} is written by the run that has the lock beside it, {seen['run'] or 'none'}, "
                f"not by {run}. "
                "Remedy: let that one end, then run again."
            )

    def write(self, document: Mapping[str, Any], check: bool = False) -> tuple[bool, Document]:
        """Puts a whole, newer journal in place: one that begins, or the newest for a keeper that was away.

        `after` is the place of the journal that it was made from. Raises RolloutError where this keeper has a newer
        one than that, and for another roll while one is open; allowed then are a rollback, and a journal that
        `abandons` that run.
        """
        want = _bounded(document)
        with _alone(self._directory, check):
            self.must_hold(str(want.get("writer", want["run"])))
            have = self.read()
            if have == want:
                return False, have
            if have and (list(place(have)) > list(want["after"]) or place(have) >= place(want)):
                raise RolloutError(
                    f"{self._path} is at entry {have['seq']} of {have['run']}, which {want['run']} does not know. "
                    "Remedy: run again; another run has written to it meanwhile."
                )
            other = bool(have) and have["run"] != want["run"]
            given_up = other and want.get("abandons") == have["run"]
            if other and have["state"] in OPEN and want["kind"] != "rollback" and not given_up:
                raise RolloutError(
                    f"{self._path}: {have['run']} is {have['state']}. Remedy: finish it by running its playbook "
                    f"again, take it back with playbooks/rollback.yml, or pass -e rollout_abandon={have['run']}."
                )
            if not check:
                if other:
                    self._keep(have, "abandoned" if given_up and have["state"] in OPEN else have["state"])
                _put(self._path, want)
            return True, want

    def step(self, run: str, seq: int, step: Mapping[str, Any], check: bool = False) -> tuple[bool, Document]:
        """Adds an entry. The same one again is no change; a gap means that this keeper missed some: RolloutError."""
        record = _bounded_step({**step, "seq": seq})
        with _alone(self._directory, check):
            document = self._of(run)
            if any({**old, "at": ""} == {**record, "at": ""} for old in document["steps"][-1:]):
                return False, document
            self._follows(document, seq)
            document["steps"].append({**record, "at": _now()})
            document["seq"] = seq
            document["state"] = _state_after(document)
            if not check:
                _put(self._path, document)
            return True, document

    def finish(self, run: str, seq: int, state: str, check: bool = False) -> tuple[bool, Document]:
        """Closes the journal as `state`, one of CLOSED.

        A roll of which turns are left, of tiers that this run was not asked for, stays open as failed instead.
        """
        if state not in CLOSED:
            raise RolloutError(f"state is {state!r}, not one of {', '.join(CLOSED)}.")
        with _alone(self._directory, check):
            document = self._of(run)
            state = "failed" if state == "finished" and turns_left(document) else state
            if (document["state"], document["seq"]) == (state, seq):
                return False, document
            self._follows(document, seq)
            document.update(seq=seq, state=state, ended=_now())
            if not check:
                _put(self._path, document)
            return True, document

    def _of(self, run: str) -> Document:
        """The journal, which must be this run's to write."""
        self.must_hold(run)
        document = self.read()
        if not document:
            raise RolloutError(f"{self._path} is not there: the roll was not begun on this keeper. Remedy: run again.")
        writer = document.get("writer", document["run"])
        if writer != run:
            raise RolloutError(
                f"{self._path} is written by {writer}, not by {run}. Remedy: let that one end, then run again."
            )
        return document

    def _follows(self, document: Document, seq: int) -> None:
        if seq != document["seq"] + 1:
            raise RolloutError(
                f"{self._path} is at entry {document['seq']}; entry {seq} does not follow. Remedy: run again, which "
                "brings every keeper to the newest journal first."
            )

    def _keep(self, document: Document, state: str) -> None:
        """Copies a journal that another one will replace into the history."""
        history = self._directory / "history"
        history.mkdir(mode=0o700, exist_ok=True)
        _put(history / f"{_named(document['run'])}.json", {**document, "state": state})
        for stale in sorted(history.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-HISTORY]:
            stale.unlink()
        _flush_directory(history)


def place(document: Mapping[str, Any]) -> tuple[int, int]:
    """(term, seq): the greater, the newer."""
    return int(document.get("term", 0)), int(document["seq"])


def turns_left(document: Mapping[str, Any]) -> list[str]:
    """The turns that were begun and have not ended, each as "tier on host"."""
    last = {(step.get("tier"), step.get("host")): step.get("phase") for step in document["steps"]}
    return [f"{tier} on {host}" for (tier, host), phase in last.items() if phase not in ENDED]


def _state_after(document: Mapping[str, Any]) -> str:
    """A host that went back after a failure leaves the roll failed. An update of which every host went back is taken
    back as a whole: another one may begin."""
    last = {(step.get("tier"), step.get("host")): step.get("phase") for step in document["steps"]}
    newest = document["steps"][-1].get("phase")
    if newest == "went_back" and document["kind"] == "update" and set(last.values()) == {"went_back"}:
        return "rolled_back"
    return {"failed": "failed", "went_back": str(document["state"])}.get(str(newest), "running")


def _bounded_step(step: Mapping[str, Any]) -> Document:
    return {key: value if isinstance(value, int) else str(value)[:EVIDENCE] for key, value in step.items()}


def _bounded(document: Mapping[str, Any]) -> Document:
    bounded = {"after": [0, 0], **copy.deepcopy(dict(document))}
    missing = [key for key, kind in FIELDS.items() if not isinstance(bounded.get(key), kind)]
    if missing:
        raise RolloutError(f"a journal needs {', '.join(missing)}.")
    _named(bounded["run"])
    bounded["steps"] = [_bounded_step(step) for step in bounded["steps"]]
    return bounded
