"""One lab host: its disk, its identity, and its life."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import mounts, network
from lab.cgroups import Hierarchies, HostGroup
from lab.errors import HostStateError, TimeoutExpired
from lab.inventory import HostSpec
from lab.names import Names
from lab.proc import run
from lab.state import write_atomically

CHECKOUT = Path(__file__).resolve().parents[1]
PROPAGATION = Path("/run/systemd/nspawn/propagate")
START_TIMEOUT = 90.0
JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'


@dataclass(frozen=True)
class Host:
    """A host with a place in the lab. `directory` is its state directory."""

    spec: HostSpec
    index: int
    number: int  # N of the lab's 10.77.N.0/24
    names: Names
    directory: Path
    hierarchies: Hierarchies

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> str:
        return network.address(self.number, self.index)

    @property
    def interface(self) -> str:
        return self.names.interface(self.index)

    @property
    def group(self) -> HostGroup:
        return HostGroup(self.hierarchies, f"{self.names.cgroup}/{self.name}")

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def upper(self) -> Path:
        return self.directory / "upper"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def has_disk(self) -> bool:
        return (self.directory / "ready").exists()

    # --- life ------------------------------------------------------------------------------------------------

    @property
    def powered(self) -> bool:
        """True while the supervisor lives, which is also so in the moment between two boots."""
        try:
            handle = os.open(self.directory / "supervisor.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    @property
    def init(self) -> int | None:
        """Process id, on the machine, of the host's own PID 1."""
        if not self.powered:
            return None
        try:
            nspawn = int((self.directory / "nspawn.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return _first_child(nspawn, _is_init)

    def require_init(self) -> int:
        init = self.init
        if init is None:
            raise HostStateError(f"{self.name} is not running", f"start it: lab start {self.name}")
        return init

    def launch(self, layers: Sequence[Path]) -> None:
        """Power on. Returns at once; `wait_ready` waits for SSH."""
        if self.powered:
            return
        self._clear()
        self.group.create(self.spec.memory_mib, self.spec.cpus)
        mounts.overlay(layers, self.upper, self.directory / "work", self.root)
        launch = {
            "machine": self.names.machine(self.index),
            "hostname": self.name,
            "bridge": self.names.bridge,
            "interface": self.interface,
            "cgroup": self.group.name,
        }
        write_atomically(self.directory / "launch.json", json.dumps(launch, indent=2) + "\n")
        (self.directory / "nspawn.pid").unlink(missing_ok=True)
        with self.console.open("ab") as console:
            subprocess.Popen(
                [sys.executable, "-m", "lab.supervisor", str(self.directory)],
                cwd="/",
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def wait_ready(self, timeout: float = START_TIMEOUT, *, since: float | None = None) -> float:
        """Wait until sshd greets; returns the seconds since `since` (monotonic), or since the call."""
        began = time.monotonic() if since is None else since
        deadline = time.monotonic() + timeout
        grace = time.monotonic() + 20  # for the supervisor to take its lock on a busy machine
        while True:
            if self._greets():
                return time.monotonic() - began
            begun = (self.directory / "nspawn.pid").exists() or time.monotonic() > grace
            if begun and not self.powered:
                state = "ended while it was starting"
                break
            if time.monotonic() > deadline:
                state = f"did not answer on SSH within {timeout:.0f} s"
                break
            time.sleep(0.1)
        raise TimeoutExpired(f"{self.name} {state}; its console: {self.console_tail()}", f"read {self.console}")

    def _greets(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address, 22), timeout=1) as connection:
            connection.settimeout(3)
            return connection.recv(4) == b"SSH-"
        return False

    def console_tail(self, lines: int = 8) -> str:
        if not self.console.exists():
            return "(no console output)"
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> float:
        """Cut the power: the network first, so that no FIN or RST escapes, then every process at once.

        Returns the seconds until nothing of the host ran any more.
        """
        began = time.monotonic()
        init = self.require_init()
        if network.exists(self.interface):  # a host that has just begun to boot has none yet
            run(["ip", "link", "set", self.interface, "down"])
        os.kill(init, signal.SIGKILL)
        self._wait_off(10)
        return time.monotonic() - began

    def stop(self, timeout: float = 90) -> None:
        """Shut down as an operator would; the disk stays."""
        self.require_init()
        self.execute(["systemctl", "poweroff"], check=False)
        self._wait_off(timeout)

    def _wait_off(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.powered:
            if time.monotonic() > deadline:
                raise TimeoutExpired(f"{self.name} is still on after {timeout:.0f} s", f"lab kill {self.name}")
            time.sleep(0.02)
        self._clear()

    def _clear(self) -> None:
        """Remove what the last life left: stray processes, the interface, the control groups.

        The groups must be new ones: Linux 6.18 kills what is started from a group that `cgroup.kill` was once used on
        into one that is younger, and systemd starts every service that way.
        """
        self.group.kill()
        self.group.remove()
        run(["ip", "link", "delete", self.interface], check=False)

    def reboot(self) -> float:
        """Reboot from inside, wait for SSH; returns the seconds this took."""
        began = time.monotonic()
        before = self.require_init()
        self.execute(["systemctl", "reboot"], check=False)
        while self.init in (before, None):
            if time.monotonic() - began > START_TIMEOUT:
                raise TimeoutExpired(f"{self.name} did not reboot within {START_TIMEOUT:.0f} s", f"read {self.console}")
            time.sleep(0.05)
        return self.wait_ready(since=began)

    def destroy(self) -> None:
        """Remove processes, mounts, interface, control groups and disk."""
        self._clear()
        mounts.unmount_below(self.directory)
        remove_propagation(self.names.machine(self.index))
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- inside ----------------------------------------------------------------------------------------------

    def enter_command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in all namespaces of the host."""
        if self.group.frozen:
            raise HostStateError(f"{self.name} is frozen, so a command in it would hang", f"lab thaw {self.name}")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        clean = ["env", "-i", "-C", "/root", path, "HOME=/root", "LANG=C.UTF-8", f"TERM={os.getenv('TERM', 'dumb')}"]
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]
        enter = ["nsenter", f"--target={self.require_init()}", *namespaces, *clean, *command]
        # The shell puts itself among the host's processes and becomes the command.
        return ["sh", "-c", JOIN, "lab-exec", *map(str, self.group.payload_files()), "--", *enter]

    def call(self, command: Sequence[str]) -> int:
        """Run a command with the caller's own terminal; returns its exit status."""
        return subprocess.run(self.enter_command(command), check=False).returncode

    def execute(
        self, command: Sequence[str], *, stdin: str | None = None, check: bool = True, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, by namespace and not by network, so also while the host is cut off."""
        done = subprocess.run(
            self.enter_command(command),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            raise HostStateError(f"{self.name}: `{' '.join(command)}` failed ({done.returncode}): {output}")
        return done

    # --- disk ------------------------------------------------------------------------------------------------

    def make_disk(self, files: Mapping[str, tuple[str, int]]) -> None:
        """Make the writable layer with the given files (path -> content, mode). A half-made disk is made again."""
        mounts.unmount_below(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        for folder in (self.upper, self.directory / "work", self.root):
            folder.mkdir(parents=True)
        # The upper directory's own mode is what the host sees as the mode of /.
        self.upper.chmod(0o755)
        for path, (content, mode) in files.items():
            write_atomically(self.upper / path, content, mode)
            (self.upper / path).chmod(mode)
        for private in ("root", "root/.ssh"):
            (self.upper / private).chmod(0o700)
        (self.directory / "ready").touch()


def remove_propagation(machine: str) -> None:
    """Remove the folder by which nspawn hands mounts to a machine, which it leaves unless /run is a tmpfs."""
    for folder in PROPAGATION.glob(machine):
        with suppress(OSError):
            folder.rmdir()


def new_key(path: Path, comment: str) -> tuple[str, str]:
    """Make an ed25519 key pair unless there is one; returns private and public text."""
    public = path.with_name(f"{path.name}.pub")
    if not public.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
    return path.read_text(), public.read_text()


def _first_child(parent: int, wanted: Callable[[int], bool]) -> int | None:
    """The kernel's own list of children is quick, but leaves some out while others end: then all processes are read."""
    with suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if wanted(child):
                    return child
    return next(filter(wanted, _children(parent)), None)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                stat = (entry / "stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


def _is_init(pid: int) -> bool:
    """PID 1 of a namespace one below the machine's: nspawn has a short-lived helper child besides."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1] == "1" and len(line.split()) > 2
    return False
