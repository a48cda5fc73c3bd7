"""Reads and acts on systemd units: what `service_units` does, and what `config_files` says of it beforehand.

What is to be done is decided in units.py; this is the part that talks to systemd and to listeners.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from .units import SHOW_PROPERTIES, UnitError, UnitState, Want, changed_at, decide, parse_show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The argument spec of a list of units; DOCUMENTATION of service_units describes it.
UNITS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "options": {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["started", "stopped", "as_is"], "default": "started"},
        "enabled": {"type": "bool"},
        "masked": {"type": "bool", "default": False},
        "restart_on": {"type": "list", "elements": "path", "default": []},
        "reload_on": {"type": "list", "elements": "path", "default": []},
        "wait_for": {
            "type": "dict",
            "required_one_of": [["port", "url"]],
            "mutually_exclusive": [["port", "url"]],
            "options": {
                "port": {"type": "int"},
                "host": {"type": "str", "default": "127.0.0.1"},
                "url": {"type": "str"},
                "status": {"type": "list", "elements": "int", "default": [200]},
                "contains": {"type": "str"},
                "ca": {"type": "path"},
                "cert": {"type": "path"},
                "key": {"type": "path", "no_log": False},
                "timeout": {"type": "int", "default": 30},
            },
        },
    },
}

class Host(Protocol):
    """What of an AnsibleModule is used here."""

    @property
    def check_mode(self) -> bool: ...

    def run_command(self, args: list[str], /) -> tuple[int, str, str]: ...


SHOW = ("show", "--property=" + ",".join(SHOW_PROPERTIES))
STAMPS = "/run/devmentor/loaded"  # one empty file per reloaded unit: systemd keeps no time of the last reload


def show_all(host: Host, names: Iterable[str]) -> dict[str, UnitState]:
    """The units' states, asked in one call. Empty where the answer cannot be told apart: each is asked alone then."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    code, out, _ = host.run_command(["systemctl", *SHOW, *wanted])
    parts = out.strip().split("\n\n")
    if code != 0 or len(parts) != len(wanted):
        return {}
    boot = time.time() - time.monotonic()
    return {name: parse_show(part, boot) for name, part in zip(wanted, parts, strict=True)}


class Units:
    """Brings units into the state asked for, one after the other.

    With `report` it acts on nothing and waits for nothing: `pending` then has what a run would do or wait for.
    """

    def __init__(self, module: Host, report: bool, known: Mapping[str, UnitState] | None = None) -> None:
        self.module = module
        self._known = dict(known or {})
        self.report = report
        self.passive: bool = module.check_mode or report
        self.actions: list[str] = []
        self.interrupts = False
        self.reloaded_daemon = False
        self._also_pending: list[str] = []

    @property
    def pending(self) -> list[str]:
        """What a run would do or wait for, a line each, after apply() with `report`."""
        return self.actions + self._also_pending

    def apply(self, items: list[dict[str, Any]]) -> None:
        """Treats units as described by UNITS, in this order. Raises UnitError at the first that cannot be had."""
        if self.passive:
            self._known = {**show_all(self.module, [item["name"] for item in items]), **self._known}
        for item in items:
            self.one(item)

    def systemctl(self, *words: str) -> tuple[int, str, str]:
        answer: tuple[int, str, str] = self.module.run_command(["systemctl", *words])
        return answer

    def show(self, name: str) -> UnitState:
        if name in self._known:
            return self._known[name]
        code, out, err = self.systemctl(*SHOW, name)
        if code != 0:
            raise UnitError(f"{name}: systemctl show failed with {code}: {err.strip()}")
        return parse_show(out, boot=time.time() - time.monotonic())

    def journal(self, name: str) -> str:
        command = ["journalctl", "--unit", name, "--lines", "20", "--no-pager", "--output", "cat"]
        out: str = self.module.run_command(command)[1]
        return out.strip() or "(the journal has nothing)"

    def fail(self, name: str, what: str) -> NoReturn:
        raise UnitError(f"{name}: {what}. Its last journal lines:\n{self.journal(name)}")

    def daemon_reload(self) -> None:
        if self.reloaded_daemon or self.passive:
            return
        code, _, err = self.systemctl("daemon-reload")
        if code != 0:
            raise UnitError(f"systemctl daemon-reload failed with {code}: {err.strip()}")
        self.reloaded_daemon = True

    def one(self, item: dict[str, Any]) -> None:
        name = item["name"]
        have = self.show(name)
        if item["state"] == "as_is":
            if have.needs_daemon_reload:
                self.actions.append(f"{name}: daemon-reload (its files changed)")
                self.daemon_reload()
            return
        if have.needs_daemon_reload or (have.load_state == "not-found" and not self.passive):
            self.daemon_reload()
            have = self.show(name)
        if self.report and have.needs_daemon_reload:
            # What its new files are newer than, only a loaded unit tells.
            self._also_pending.append(f"{name}: daemon-reload (its files changed)")
            self.interrupts = True
        files = tuple(item["restart_on"]), tuple(item["reload_on"])
        want = Want(name, item["state"], item["enabled"], item["masked"], *files)
        stamp = os.path.join(STAMPS, name)
        times = {path: changed_at(path) for path in [*have.files, *want.restart_on, *want.reload_on]}
        applied = max(have.started, changed_at(stamp))
        try:
            actions = decide(want, have, applied, times)
        except UnitError:
            if not self.passive:
                raise
            self.actions.append(f"{name}: start (its package or file is not there yet)")
            return
        for verb, reason in actions:
            self.actions.append(f"{name}: {verb} ({reason})")
            self.interrupts |= verb not in ("start", "enable", "unmask")
            if not self.passive:
                self.act(name, verb, stamp)
        up = item["state"] == "started" and not item["masked"]
        if self.report and up and item["wait_for"] and not actions:
            problem = self.probe(item["wait_for"])
            if problem:
                self._also_pending.append(f"{name}: {problem}")
        if not self.passive and up:
            if item["wait_for"]:
                self.wait(name, item["wait_for"])
            elif actions and self.show(name).active_state not in ("active", "activating", "reloading"):
                self.fail(name, "did not stay up")

    def act(self, name: str, verb: str, stamp: str) -> None:
        if verb in ("start", "restart"):
            self.systemctl("reset-failed", name)
        code, _, err = self.systemctl(verb, name)
        if code != 0:
            self.fail(name, f"systemctl {verb} failed with {code}: {err.strip()}")
        if verb == "reload":
            os.makedirs(STAMPS, exist_ok=True)
            with open(stamp, "w"):
                os.utime(stamp)

    def wait(self, name: str, wait: dict[str, Any]) -> None:
        deadline = time.monotonic() + wait["timeout"]
        while True:
            problem = self.probe(wait)
            if problem is None:
                return
            if self.show(name).active_state == "failed":
                self.fail(name, "failed")
            if time.monotonic() > deadline:
                self.fail(name, f"does not answer after {wait['timeout']} s ({problem})")
            time.sleep(0.2)

    def probe(self, wait: dict[str, Any]) -> str | None:
        """Why what must answer does not, or None."""
        return self.probe_url(wait) if wait["url"] else self.probe_port(wait)

    @staticmethod
    def probe_port(wait: dict[str, Any]) -> str | None:
        try:
            with socket.create_connection((wait["host"], wait["port"]), timeout=2):
                return None
        except OSError as error:
            return f"{wait['host']}:{wait['port']}: {error}"

    @staticmethod
    def probe_url(wait: dict[str, Any]) -> str | None:
        # Here, because every call of config_files would pay for them: a module is compiled anew in each task.
        import ssl
        import urllib.error
        import urllib.request

        try:
            context = None
            if wait["url"].startswith("https"):
                context = ssl.create_default_context(cafile=wait["ca"])
                if wait["cert"]:
                    context.load_cert_chain(wait["cert"], wait["key"])
            try:
                answer = urllib.request.urlopen(wait["url"], timeout=5, context=context)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                status, text = answer.status, answer.read(1 << 16).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            return f"{wait['url']}: {error}"
        if status not in wait["status"]:
            return f"{wait['url']}: status {status}: {text[:300]}"
        if wait["contains"] and wait["contains"] not in text:
            return f"{wait['url']}: {wait['contains']!r} is not in the answer: {text[:300]}"
        return None
