"""The process that keeps one host alive: `python -m lab.supervisor HOST_DIRECTORY`.

It runs nspawn in the host's own control groups and starts it again when the guest asked for a reboot, which is what a
machine's firmware does. It holds a lock on the host's directory for as long as it lives; that lock, and not a process
id that may be reused, is how others tell that the host is on.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lab.cgroups import HostGroup, find_hierarchies

REBOOT = 133  # nspawn's exit status when the guest rebooted: nobody but us starts it again


def launch_command(directory: Path, spec: dict[str, str]) -> list[str]:
    return [
        "systemd-nspawn",
        "--quiet",
        f"--directory={directory / 'root'}",
        f"--machine={spec['machine']}",
        f"--hostname={spec['hostname']}",
        "--boot",
        "--register=no",
        "--keep-unit",
        f"--network-bridge={spec['bridge']}",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        *(f"--bind={directory / 'volumes' / name}:{path}" for path, name in volumes(directory).items()),
    ]


def volumes(directory: Path) -> dict[str, str]:
    """Directories that `lab fill` moved to volumes of their own: path in the host -> name of the volume."""
    record = directory / "volumes.json"
    return json.loads(record.read_text()) if record.exists() else {}


def serve(directory: Path) -> int:
    spec = json.loads((directory / "launch.json").read_text())
    group = HostGroup(find_hierarchies(), spec["cgroup"])
    group.join("launcher", os.getpid())

    lock = os.open(directory / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # the host is on already

    environment = {
        "PATH": os.environ["PATH"],
        "TERM": "linux",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        "SYSTEMD_NSPAWN_LOCK": "0",  # ours is held; nspawn's would stay in /run for ever
    }
    with (directory / "console.log").open("ab", buffering=0) as console:
        while True:
            # After a reboot the last life's interface may still be on its way out.
            subprocess.run(["ip", "link", "delete", spec["interface"]], capture_output=True, check=False)
            guest = subprocess.Popen(
                launch_command(directory, spec),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: group.join("machine", os.getpid()),
            )
            (directory / "nspawn.pid").write_text(f"{guest.pid}\n")
            status = guest.wait()
            console.write(f"[lab] {time.strftime('%FT%T%z')} host ended with status {status}\n".encode())
            if status != REBOOT:
                return 0


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
