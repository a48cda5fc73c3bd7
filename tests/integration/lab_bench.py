"""A lab that tests may break, driven as a person would, and what the machine shows of it, found without asking it.

For `test_lab_*.py`; fixture `bench` (conftest.py) makes such a lab for each of these files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab.host import CHECKOUT
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.names import lab_identity
from lab.progress import Silent
from lab.state import state_root

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")

THREE = """
all:
  hosts:
    a1: {lab_memory_mib: 400}
    a2:
    old: {lab_suite: bookworm}
    spare: {lab_autostart: false}
"""


@dataclass
class Bench:
    """A lab driven by its command line, as a person would."""

    inventory: Path

    @property
    def identity(self) -> str:
        return lab_identity(CHECKOUT, read_inventory(self.inventory).file)

    @property
    def variables(self) -> dict[str, object]:
        return yaml.safe_load((self.inventory / "group_vars/all/lab.generated.yml").read_text())

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "lab", "--inventory", str(self.inventory), *words]

    def lab(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(self.command(*words), cwd=CHECKOUT, capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stderr + done.stdout
        return done.stdout + done.stderr

    def exec(self, host: str, script: str, status: int = 0) -> str:
        """A shell script inside a host, by the library: a Python start per command would double the tests' time."""
        done = Lab(read_inventory(self.inventory), Silent()).host(host).execute(["sh", "-c", script], check=False)
        assert done.returncode == status, f"{host}: {script}: {done.returncode}: {done.stderr}{done.stdout}"
        return (done.stdout + done.stderr).strip()

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in json.loads(self.lab("status", "--json"))}

    def ssh(self, host: str, command: str) -> subprocess.CompletedProcess[str]:
        values = self.variables
        options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=3"]
        known = ["-o", f"UserKnownHostsFile={values['lab_known_hosts']}", "-i", values["lab_ssh_key"]]
        address = values["lab_addresses"][host]
        return subprocess.run(
            ["ssh", *options, *known, f"root@{address}", command], capture_output=True, text=True, timeout=30
        )


def traces(identity: str) -> set[str]:
    """Everything on the machine that carries a lab's identity, found without asking the lab."""
    found = {f"link {name}" for name in os.listdir("/sys/class/net") if identity in name}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {f"mount {line.split()[4]}" for line in mounts if identity in line}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    found |= {f"nft {line}" for line in tables.splitlines() if identity in line}
    for folder, folders, _files in os.walk("/sys/fs/cgroup"):
        found |= {f"cgroup {folder}/{name}" for name in folders if identity in name}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if ") Z " in (entry / "stat").read_text():
                    continue  # dead, its parent has not looked yet
                text = (entry / "cmdline").read_text(errors="replace") + (entry / "cgroup").read_text()
            except OSError:
                continue
            if identity in text:
                found.add(f"process {entry.name}")
    found |= {f"runtime {path}" for path in Path("/run").rglob(f"*{identity}*")}
    return found | {f"state {path}" for path in state_root().glob(f"*{identity}*")}


def remains(identity: str) -> set[str]:
    """What is left of a lab that was taken down, once the machine's init has collected the dead processes."""
    deadline = time.monotonic() + 10
    while (found := traces(identity)) and kinds(found) == {"process"} and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def kinds(found: set[str]) -> set[str]:
    return {item.split()[0] for item in found}


def make(folder: Path, text: str) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.yml").write_text(text)
    return Bench(folder)
