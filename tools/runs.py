"""Runs playbooks and lab commands as an operator would, and reads back what they did."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class RunError(Exception):
    """A command that had to succeed did not; the message has its last lines."""


@dataclass(frozen=True)
class Run:
    """What a command did: exit status, all output, wall-clock seconds."""

    command: list[str]
    status: int
    output: str
    seconds: float

    def recap(self) -> dict[str, dict[str, int]]:
        """ansible-playbook's recap: host -> {ok, changed, unreachable, failed, ...}. RunError where it has no host."""
        hosts: dict[str, dict[str, int]] = {}
        for line in self.output.partition("PLAY RECAP")[2].splitlines():
            found = re.match(r"^(\S+)\s+: (ok=.*)$", line)
            if found:
                pairs = (part.split("=") for part in found[2].split())
                hosts[found[1]] = {name: int(count) for name, count in pairs}
        if not hosts:
            raise RunError(f"{' '.join(self.command)} exited with {self.status} without a recap:\n{self.tail()}")
        return hosts

    def changed(self) -> dict[str, int]:
        """Changed tasks per host, hosts without any left out."""
        return {host: row["changed"] for host, row in self.recap().items() if row["changed"]}

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.output.splitlines()[-lines:])

    def require(self) -> Run:
        """Itself; raises RunError where the exit status is not 0."""
        if self.status != 0:
            raise RunError(f"{' '.join(self.command)} exited with {self.status}:\n{self.tail()}")
        return self


def environment(**more: str) -> dict[str, str]:
    """A child's environment: the control node's tools on PATH, the project's settings, output without colours."""
    values = {
        **os.environ,
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }
    # The recap is read back, and forced colours go before ANSIBLE_NOCOLOR.
    values.pop("ANSIBLE_FORCE_COLOR", None)
    # Every task of a playbook is a new process: without compiled plugins each compiles them again.
    values.pop("PYTHONDONTWRITEBYTECODE", None)
    return values


def run(*command: str, timeout: float = 3600, show: bool = False, env: dict[str, str] | None = None) -> Run:
    """Runs a command from the repository's root with the control node's tools on PATH.

    show: pass the output on to the terminal while it comes. timeout in seconds; past it the command is killed and
    RunError raised.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(**(env or {})),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    lines = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line)
            if show:
                sys.stdout.write(line)
                sys.stdout.flush()
            if time.monotonic() - began > timeout:
                raise RunError(f"{' '.join(command)} ran past {timeout:.0f} s:\n{''.join(lines[-60:])}")
        status = process.wait(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return Run(list(command), status, "".join(lines), time.monotonic() - began)


def playbook(name: str, inventory: Path, *arguments: str, timeout: float = 3600, show: bool = False) -> Run:
    """Runs playbooks/NAME.yml against an inventory with its vault password and without a terminal."""
    password = inventory / ".vault-password"
    env = {"ANSIBLE_VAULT_PASSWORD_FILE": str(password.resolve())} if password.exists() else {}
    command = ["ansible-playbook", "-i", str(inventory), f"playbooks/{name}.yml", *arguments]
    return run(*command, timeout=timeout, show=show, env=env)


def lab_command(inventory: Path, verb: str, *arguments: str) -> list[str]:
    """The command line of a lab verb on an inventory's hosts."""
    return [sys.executable, "-m", "lab", verb, "--inventory", str(inventory), *arguments]


def lab(inventory: Path, verb: str, *arguments: str, timeout: float = 900, show: bool = False) -> Run:
    """Runs a lab verb on an inventory's hosts."""
    return run(*lab_command(inventory, verb, *arguments), timeout=timeout, show=show)


def load_average() -> float:
    """The machine's load over the last minute: said beside every time that is reported."""
    return round(os.getloadavg()[0], 2)


def record(path: Path, **values: object) -> None:
    """Merges values into a JSON file."""
    current = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**current, **values}, indent=2) + "\n")
