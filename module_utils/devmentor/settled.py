"""What config_files leaves on a host, recorded, so that a later run can tell without asking that it is still so.

config_files records, under a fingerprint of all its arguments, how each path looked when it was done. The local fact
of roles/base names the fingerprints whose records still hold: no path changed by so much as its inode's time, every
account is there, every unit runs with what its files say now. The action plugin of config_files does not ask a host
that names the fingerprint of what it was about to ask for.

A record says what was seen, not what was done. It is worth nothing once anything differs, and may be deleted at any
time.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

from .files import account_gaps
from .unit_control import Units, show_all
from .units import UnitError

PROBE_LIMIT_S = 10.0

Record = dict[str, Any]


class LocalHost:
    """This host, for Units."""

    check_mode = True

    def run_command(self, args: list[str], /) -> tuple[int, str, str]:
        done = subprocess.run(args, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr


def file_state(path: str) -> list[int] | None:
    """Inode, mode with type, owner, group, size and both times of a regular file; None where there is none."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode):
        return None
    return [info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def directory_state(path: str) -> list[int] | None:
    """Mode with type, owner and group of a directory; None where there is none."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return [info.st_mode, info.st_uid, info.st_gid] if stat.S_ISDIR(info.st_mode) else None


def link_state(path: str) -> str | None:
    """The target of a symbolic link; None where there is none."""
    return os.readlink(path) if os.path.islink(path) else None


def record_of(fingerprint: str, params: Record) -> Record:
    """The record of what config_files has just had: params as its argument spec leaves them."""
    files = [item["path"] for option in ("files", "secret_files", "blocks") for item in params[option]]
    return {
        "fingerprint": fingerprint,
        "users": params["users"],
        "directories": {item["path"]: directory_state(item["path"]) for item in params["directories"]},
        "files": {path: file_state(path) for path in files},
        "links": {item["path"]: link_state(item["path"]) for item in params["links"]},
        "absent": params["absent"],
        "units": params["units"],
    }


def write(directory: str, name: str, record: Record) -> None:
    """Puts a record in the place of the one of that name; nothing is written where it says the same."""
    path = Path(directory, f"{name}.json")
    text = json.dumps(record, sort_keys=True)
    try:
        if path.read_text() == text:
            return
    except (OSError, ValueError):
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
    temporary.replace(path)


def files_hold(record: Record) -> bool:
    """Whether every account and path of a record is as it was."""
    return (
        not any(account_gaps(user) for user in record["users"])
        and all(seen and directory_state(path) == seen for path, seen in record["directories"].items())
        and all(seen and file_state(path) == seen for path, seen in record["files"].items())
        and all(seen and link_state(path) == seen for path, seen in record["links"].items())
        and not any(os.path.lexists(path) for path in record["absent"])
    )


def holding(directory: str, limit_s: float = PROBE_LIMIT_S) -> dict[str, str]:
    """Fingerprint -> name of the records that hold. One that cannot be read, or judged within the limit, does not."""
    deadline = time.monotonic() + limit_s
    records: dict[str, Record] = {}
    for path in sorted(Path(directory).glob("*.json")):
        try:
            record = json.loads(path.read_text())
            if files_hold(record):
                records[path.stem] = record
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    host = LocalHost()
    found = {}
    try:
        known = show_all(host, [unit["name"] for record in records.values() for unit in record["units"]])
        for name, record in records.items():
            units = Units(host, report=True, known=known)
            if time.monotonic() < deadline:
                units.apply(record["units"])
                if not units.pending:
                    found[str(record["fingerprint"])] = name
    except (OSError, ValueError, KeyError, TypeError, UnitError):
        pass
    return found
