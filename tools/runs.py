"""Runs playbooks and lab commands as an operator would, and reads back what they did."""

from __future__ import annotations

import codecs
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What a command has to end itself after Ctrl-C before it is killed.
INTERRUPT_SECONDS = 10.0


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

    show: pass the output on to the terminal while it comes. timeout in seconds; past it the command and every process
    that it started are killed and RunError raised.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(**(env or {})),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    texts: list[str] = []
    ended = False
    try:
        for text in _output(process, began + timeout):
            texts.append(text)
            if show:
                sys.stdout.write(text)
                sys.stdout.flush()
        # A command may close its output and go on.
        status = process.wait(timeout=max(0.0, began + timeout - time.monotonic()))
        ended = True
    except (TimeoutError, subprocess.TimeoutExpired):
        last = "".join(texts).splitlines()[-60:]
        raise RunError("\n".join([f"{' '.join(command)} ran past {timeout:.0f} s:", *last])) from None
    except KeyboardInterrupt:
        # The terminal's Ctrl-C does not reach another session: hand it on, and give the command time to end itself.
        _signal(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=INTERRUPT_SECONDS)
        raise
    finally:
        if not ended:
            _signal(process, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
    return Run(list(command), status, "".join(texts), time.monotonic() - began)


def _output(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """What the process and its children write, as it comes, until all of them closed it; TimeoutError at the deadline.

    Not line by line: a child that writes nothing, or half a line, must not keep the deadline from being looked at.
    """
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise TimeoutError
        chunk = os.read(process.stdout.fileno(), 65536)
        yield decoder.decode(chunk, final=not chunk)
        if not chunk:
            return


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process and all its children that have not made a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def playbook(name: str, inventory: Path, *arguments: str, timeout: float = 3600, show: bool = False) -> Run:
    """Runs playbooks/NAME.yml against an inventory with its vault password and without a terminal."""
    return playbook_file(Path("playbooks") / f"{name}.yml", inventory, *arguments, timeout=timeout, show=show)


def playbook_file(path: Path, inventory: Path, *arguments: str, timeout: float = 3600, show: bool = False) -> Run:
    """Runs a playbook that is not one of playbooks/, otherwise as `playbook`."""
    command, env = playbook_command(path, inventory, *arguments)
    return run(*command, timeout=timeout, show=show, env=env)


def playbook_command(path: Path, inventory: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command line of a playbook run and what its environment needs beyond the usual."""
    password = inventory / ".vault-password"
    env = {"ANSIBLE_VAULT_PASSWORD_FILE": str(password.resolve())} if password.exists() else {}
    return ["ansible-playbook", "-i", str(inventory), str(path), *arguments], env


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
