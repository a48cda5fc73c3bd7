"""Rolls as an operator starts them, each in a process group of its own, and what the keepers have of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filter_plugins.rollout import rollout_keepers
from lab.errors import LabError
from tests.chaos.qwen.deployed import Deployed, inside
from tests.chaos.rollout import journal
from tests.chaos.rollout.journal import Document
from tools.runs import ROOT, RunError, environment, playbook_command

STATE = "/var/lib/devmentor/rollout"
CURRENT = "/opt/devmentor/{app}/current"
LOOK_S = 0.2


@dataclass
class Roll:
    """One ansible-playbook. Its output goes to the file `log`."""

    inventory: Path
    playbook: str
    variables: dict[str, str]
    log: Path
    began: float = field(default=0.0, init=False)

    def start(self) -> Roll:
        path = Path("playbooks") / f"{self.playbook}.yml"
        command, env = playbook_command(path, self.inventory, "--extra-vars", json.dumps(self.variables))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        with self.log.open("w") as out:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment(**env),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        """Its exit status. Raises RunError where it has not ended by then; it is killed."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            tail = "\n".join(self.output.splitlines()[-30:])
            raise RunError(f"{self.playbook} ran past {seconds:.0f} s:\n{tail}") from None

    def kill(self) -> None:
        """SIGKILL to the whole group at once, as a control node goes that loses its power."""
        if not self.running:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """What it last said, without Ansible's headings."""
        said = [line for line in self.output.splitlines() if line.strip() and not line.startswith("TASK [")]
        return "\n".join(said[-lines:])


class Keepers:
    """The hosts that keep lock and journal, read from outside: no module has a say."""

    def __init__(self, deployed: Deployed) -> None:
        groups = {"all": deployed.variables.hosts("all")}
        self.names = rollout_keepers(groups)
        self._lab = deployed.lab

    def journal(self) -> Document | None:
        """The newest that a majority has; None where there is no majority, {} where nothing was ever rolled."""
        return journal.newest({name: self._read(name, "journal.json") for name in self.names}, self.names)

    def lock(self) -> tuple[str, str]:
        """(run, owner) of the lock; empty where no majority has it."""
        return journal.holder({name: self._read(name, "lock.json") for name in self.names}, self.names)

    def held(self) -> list[str]:
        """Keepers that have any lock."""
        return [name for name in self.names if self._read(name, "lock.json")]

    def _read(self, name: str, file: str) -> Document | None:
        """{} where there is no such file; None where the host cannot be asked or the file cannot be understood."""
        try:
            # Not by a command in the host: it is looked at many times a second.
            root = Path(f"/proc/{self._lab.host(name).require_init()}/root")
            if not (root / "etc").is_dir():  # it has lost its power since
                return None
            document = json.loads((root / f"{STATE}/{file}".lstrip("/")).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LabError):
            return None
        return document if isinstance(document, dict) else None


def releases(deployed: Deployed, app: str) -> dict[str, str]:
    """Host -> the release that its link names; empty where the host does not answer."""
    command = ["readlink", CURRENT.format(app=app)]
    return {host.name: inside(host, command).strip().rpartition("/")[2] for host in deployed.hosts(app)}


def until(roll: Roll, condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true while the roll was running, within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if not roll.running:
            return condition()
        time.sleep(LOOK_S)
    return False
