"""HAProxy's runtime interface: what its servers do, and changing that without a reload.

Two sockets: the worker's (`stats socket`), which knows the servers, and the master's (`-S`), which knows the workers.
An answer that cannot be read is an error and never taken for an empty one.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

TIMEOUT = 10.0  # seconds for one answer
RELOADING = 5.0  # seconds that a socket may go without answers

# Bits of srv_admin_state: maintenance forced, inherited, by name resolution; drain forced, inherited. 0x04 (`disabled`
# in the file) stays set after a server is made ready, and 0x40 says only who set its name.
MAINT_BITS = 0x01 | 0x02 | 0x20
DRAIN_BITS = 0x08 | 0x10

STATE_COLUMNS = ("be_name", "srv_name", "srv_addr", "srv_port", "srv_admin_state", "srv_uweight")
STAT_FIELDS = ("svname", "status", "scur", "qcur")

Ask = Callable[[str], str]


class HaproxyError(Exception):
    """The runtime interface refused, or its answer cannot be read. The message says what, where and the remedy."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A server as the running worker sees it. `sessions` are requests in work there, `queue` those that wait for it."""

    backend: str
    name: str
    address: str  # address:port
    state: str  # ready, drain or maint: what was asked for, whatever its health
    weight: int
    status: str  # HAProxy's own word, with health: UP, DOWN, DRAIN, MAINT, no check, ...
    check: str  # the last probe's: L7OK, L4CON, ...; empty where none was made
    sessions: int
    queue: int

    @property
    def facts(self) -> dict[str, Any]:
        names = ("state", "weight", "status", "check", "sessions", "queue")
        return {name: getattr(self, name) for name in names}

    @property
    def checked(self) -> bool:
        """Whether it is probed at all; servers of last resort are not."""
        return self.status != "no check"

    @property
    def healthy(self) -> bool:
        """UP by a probe. What left maintenance counts as "UP 1/2" until one passed, and one whose health was set by
        hand may still have a failed one as its last."""
        return self.status == "UP" and self.check.removeprefix("* ") in ("L4OK", "L6OK", "L7OK", "L7OKC")


@dataclasses.dataclass(frozen=True)
class Worker:
    """A worker process of an earlier configuration that still serves what it had begun."""

    pid: int
    uptime: str

    def __str__(self) -> str:
        return f"pid {self.pid}, up {self.uptime}"


class Runtime:
    """Commands to one UNIX socket of HAProxy."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, command: str) -> str:
        """HAProxy's whole answer. Raises HaproxyError where there is none.

        A master that executes itself anew, at each reload, refuses connections for a moment and resets those that it
        has: it is asked again. Every command that is used here may be given twice.
        """
        end = time.monotonic() + RELOADING
        while True:
            try:
                answer = self._ask(command)
                if _whole(answer):
                    return answer
                problem = f"closed without a whole answer to {command!r}, only {answer[-100:]!r}"
            except (ConnectionError, TimeoutError) as error:
                problem = str(error)
            except OSError as error:
                raise self._silent(str(error)) from error
            if time.monotonic() > end:
                raise self._silent(problem)
            time.sleep(0.1)

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(self.path)
            connection.sendall(command.encode() + b"\n")
            # The master's socket stays open after an answer as long as more commands may come.
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")

    def _silent(self, problem: str) -> HaproxyError:
        return HaproxyError(f"{self.path}: {problem}. Is haproxy.service running on this host, and is this its socket?")

    def order(self, command: str) -> None:
        """A command that answers nothing where it is obeyed. Raises HaproxyError with HAProxy's words otherwise."""
        answer = self(command).strip()
        if answer:
            raise HaproxyError(f"{self.path}: {command!r} was refused: {answer}")


def _whole(answer: str) -> bool:
    """An answer ends with an empty line. One that does not was cut off; of a list, it would look like a shorter one."""
    return answer == "\n" or answer.endswith("\n\n")


def state_rows(text: str) -> list[dict[str, str]]:
    """The rows of `show servers state`, by column name. Raises HaproxyError where they are not what this code knows."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or lines[0].strip() != "1" or not lines[1].startswith("# "):
        raise HaproxyError(f"'show servers state' cannot be read: {text[:200]!r}")
    columns = lines[1][2:].split()
    missing = [name for name in STATE_COLUMNS if name not in columns]
    rows = [line.split() for line in lines[2:]]
    if missing or any(len(row) != len(columns) for row in rows):
        lack = ", ".join(missing) or "whole rows"
        raise HaproxyError(f"'show servers state' cannot be read: no {lack} in {text[:300]!r}")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def stat_rows(text: str) -> dict[str, dict[str, Any]]:
    """Server name -> its fields, of `show stat BACKEND 4 -1 json`. Raises HaproxyError where it is not that."""
    try:
        entries = [{each["field"]["name"]: each["value"]["value"] for each in entry} for entry in json.loads(text)]
        found = {str(entry["svname"]): entry for entry in entries}
        if any(name not in entry for entry in entries for name in STAT_FIELDS):
            raise KeyError("/".join(STAT_FIELDS))
    except (ValueError, TypeError, KeyError) as error:
        raise HaproxyError(f"'show stat' cannot be read ({error!r}): {text[:200]!r}") from error
    return found


def servers_of(ask: Ask, backend: str) -> dict[str, Server]:
    """Name -> server of a backend. Raises HaproxyError: an unknown backend names those that there are."""
    rows = state_rows(ask("show servers state"))
    mine = [row for row in rows if row["be_name"] == backend]
    if not mine:
        known = ", ".join(sorted({row["be_name"] for row in rows})) or "none"
        raise HaproxyError(f"There is no backend {backend!r} with servers. There are: {known}.")
    stats = stat_rows(ask(f"show stat {backend} 4 -1 json"))
    absent = [row["srv_name"] for row in mine if row["srv_name"] not in stats]
    if absent:
        raise HaproxyError(f"'show stat' has nothing on {backend}/{', '.join(absent)}, 'show servers state' has.")
    return {row["srv_name"]: _server(row, stats[row["srv_name"]]) for row in mine}


def _server(row: Mapping[str, str], stat: Mapping[str, Any]) -> Server:
    try:
        bits = int(row["srv_admin_state"])
        return Server(
            backend=row["be_name"],
            name=row["srv_name"],
            address=f"{row['srv_addr']}:{row['srv_port']}",
            state="maint" if bits & MAINT_BITS else "drain" if bits & DRAIN_BITS else "ready",
            weight=int(row["srv_uweight"]),
            status=str(stat["status"]),
            check=str(stat.get("check_status", "")),
            sessions=int(stat["scur"]),
            queue=int(stat["qcur"]),
        )
    except (ValueError, TypeError) as error:
        raise HaproxyError(f"{row['be_name']}/{row['srv_name']} cannot be read: {error}") from error


def entries_of(ask: Ask, backend: str, name: str) -> list[Server]:
    """The server, then the backend's other entries for the same address and port: they lead to the same process.

    Raises HaproxyError: an unknown server names those that there are.
    """
    servers = servers_of(ask, backend)
    if name not in servers:
        raise HaproxyError(f"There is no server {name!r} in backend {backend!r}. There are: {', '.join(servers)}.")
    chosen = servers[name]
    return [chosen, *(each for each in servers.values() if each is not chosen and each.address == chosen.address)]


def old_workers(ask_master: Ask) -> list[Worker]:
    """Workers of earlier configurations, from the master's `show proc`. Raises HaproxyError where it cannot be read."""
    text = ask_master("show proc")
    section, masters, current, old = "", 0, 0, []
    for line in text.splitlines():
        fields = line.split()
        if not fields or line.startswith("#<"):
            continue
        if line.startswith("#"):
            section = line.lstrip("# ").strip()
        elif section == "" and len(fields) > 1 and fields[1] == "master":
            masters += 1
        elif section == "workers":
            current += 1
        elif section == "old workers":
            old.append(_worker(fields, text))
        elif section not in ("programs", "old programs"):
            raise HaproxyError(f"'show proc' cannot be read: {text[:300]!r}")
    if masters != 1 or current < 1:
        raise HaproxyError(f"'show proc' cannot be read (one master and its worker are expected): {text[:300]!r}")
    return old


def _worker(fields: Sequence[str], text: str) -> Worker:
    if len(fields) < 4 or not fields[0].isdigit():
        raise HaproxyError(f"'show proc' cannot be read: {text[:300]!r}")
    return Worker(int(fields[0]), fields[3])
