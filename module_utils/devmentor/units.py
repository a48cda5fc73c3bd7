"""When a systemd unit must be started, restarted or reloaded: the pure part of `service_units`.

The decision is taken from state, never from "a task changed something in this run": a run that was interrupted between
writing a file and restarting its reader is finished by the next one.
"""

from __future__ import annotations

import dataclasses
import os


class UnitError(Exception):
    """A unit that is not in the state asked for; the message says which, why and where to look."""


@dataclasses.dataclass(frozen=True)
class UnitState:
    """A unit as systemd reports it (`systemctl show`).

    active_state and unit_file_state are systemd's own words. started is the wall-clock time in seconds at which the
    unit began to start (0.0 where it never did), so what was written later was not read. files are the unit file and
    its drop-ins.
    """

    load_state: str
    active_state: str
    unit_file_state: str
    started: float
    needs_daemon_reload: bool
    files: tuple[str, ...]


SHOW_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "InactiveExitTimestampMonotonic",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
)


def parse_show(text: str, boot: float) -> UnitState:
    """UnitState from `systemctl show --property=...`.

    `boot` is the wall-clock time in seconds at which the monotonic clock was 0. systemd's wall-clock times are whole
    seconds, which cannot tell a file written just before a start from one written just after it; its monotonic ones are
    microseconds.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    since = int(values.get("InactiveExitTimestampMonotonic") or 0)
    files = tuple(part for part in [values.get("FragmentPath", ""), *values.get("DropInPaths", "").split()] if part)
    return UnitState(
        load_state=values.get("LoadState", "unknown"),
        active_state=values.get("ActiveState", "unknown"),
        unit_file_state=values.get("UnitFileState", ""),
        started=boot + since / 1e6 if since else 0.0,
        needs_daemon_reload=values.get("NeedDaemonReload") == "yes",
        files=files,
    )


def changed_at(path: str) -> float:
    """When a file last changed: the later of content and inode time, in seconds; 0.0 where it is absent.

    A rename into place sets the inode time, so a file installed with an old modification time still counts as new. For
    a link both the link's own and its target's time count (a switched `current` is a change).
    """
    latest = 0.0
    for stat in (os.lstat, os.stat):
        try:
            info = stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        latest = max(latest, info.st_mtime, info.st_ctime)
    return latest


def newer(paths: list[str], since: float, times: dict[str, float]) -> list[str]:
    """Those of `paths` that changed after `since` (seconds)."""
    return [path for path in paths if times.get(path, 0.0) > since]


@dataclasses.dataclass(frozen=True)
class Want:
    """What is asked of a unit; see the module's options of the same names."""

    name: str
    state: str
    enabled: bool | None
    masked: bool
    restart_on: tuple[str, ...]
    reload_on: tuple[str, ...]


def decide(want: Want, have: UnitState, applied: float, times: dict[str, float]) -> list[tuple[str, str]]:
    """The actions to take, in order, each with its reason.

    `applied` is the time of the last (re)start or reload in seconds, `times` the change time of every path named.
    Actions are systemctl's verbs. Raises UnitError where the unit is not there at all.
    """
    actions: list[tuple[str, str]] = []
    masked = have.unit_file_state in ("masked", "masked-runtime") or have.load_state == "masked"
    if want.masked:
        if have.active_state in ("active", "activating", "reloading"):
            actions.append(("stop", "is to be masked"))
        if not masked:
            actions.append(("mask", "not masked"))
        return actions
    if masked:
        actions.append(("unmask", "is masked"))
    elif have.load_state == "not-found":
        if want.state == "stopped" and not want.enabled:
            return []
        raise UnitError(f"{want.name}: there is no such unit. Install the package or file that brings it first.")
    enabled = have.unit_file_state in ("enabled", "enabled-runtime", "static", "alias", "generated", "indirect")
    if want.enabled is True and not enabled:
        actions.append(("enable", f"is {have.unit_file_state or 'not enabled'}"))
    if want.enabled is False and have.unit_file_state in ("enabled", "enabled-runtime"):
        actions.append(("disable", "is enabled"))
    if want.state == "stopped":
        if have.active_state not in ("inactive", "failed"):
            actions.append(("stop", f"is {have.active_state}"))
        return actions
    if have.active_state not in ("active", "reloading"):
        actions.append(("restart" if have.active_state == "activating" else "start", f"is {have.active_state}"))
        return actions
    if want.name.endswith(".slice"):
        return actions  # new limits act with the daemon-reload; a restart would stop every service in the slice
    stale = newer([*have.files, *want.restart_on], have.started, times)
    if stale:
        actions.append(("restart", "newer than the process: " + ", ".join(stale)))
        return actions
    stale = newer(list(want.reload_on), applied, times)
    if stale:
        actions.append(("reload", "newer than the last load: " + ", ".join(stale)))
    return actions
