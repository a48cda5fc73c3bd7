"""What the lab keeps on disk, and the locks that keep two commands from treading on each other.

::

    <state>/<id>/lab.json           the network and the place of every host in it
    <state>/<id>/ssh/               the client key and the known host keys
    <state>/<id>/hosts/<name>/      disk (overlay), console log, launch specification
    <cache>/                        root file systems and prebaked layers, shared by all labs
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.names import Names

CACHE = Path("/var/cache/devmentor-lab")
MACHINE_LOCK = Path("/run/lock/devmentor-lab.lock")


def state_root() -> Path:
    return Path(os.environ.get("DEVMENTOR_LAB_STATE") or "/var/lib/devmentor-lab")


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold an advisory lock on `path`, made when missing. It ends with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            # `down` unlinks its lab's lock file: a lock on an unlinked file excludes nobody.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                yield
                return
        finally:
            os.close(handle)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as handle:
        handle.write(text)
    staged.rename(path)


@dataclass
class HostRecord:
    """A host's place in the network and in names, for as long as the lab lives, and what its disk was made from."""

    index: int
    suite: str | None = None
    layer: str | None = None
    lower: list[str] = field(default_factory=list)  # read-only layers, the topmost first; empty without a disk


@dataclass
class LabRecord:
    inventory: str
    network: int | None = None  # N in 10.77.N.0/24
    hosts: dict[str, HostRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Where the files of one lab are."""

    names: Names

    @property
    def root(self) -> Path:
        return state_root() / self.names.identity

    @property
    def lock(self) -> Path:
        return state_root() / f"{self.names.identity}.lock"

    @property
    def record(self) -> Path:
        return self.root / "lab.json"

    @property
    def client_key(self) -> Path:
        return self.root / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.root / "ssh" / "known_hosts"

    def host_key(self, name: str) -> Path:
        return self.root / "ssh" / f"{name}_ed25519"

    def host(self, name: str) -> Path:
        return self.root / "hosts" / name


def load_record(layout: Layout) -> LabRecord | None:
    if not layout.record.exists():
        return None
    data = json.loads(layout.record.read_text())
    hosts = {name: HostRecord(**host) for name, host in data.pop("hosts").items()}
    return LabRecord(hosts=hosts, **data)


def save_record(layout: Layout, record: LabRecord) -> None:
    write_atomically(layout.record, json.dumps(asdict(record), indent=2) + "\n")


def other_networks(layout: Layout) -> set[int]:
    """Networks that other labs of this machine have reserved, started or not."""
    taken: set[int] = set()
    for path in state_root().glob("*/lab.json"):
        if path != layout.record and (number := json.loads(path.read_text()).get("network")) is not None:
            taken.add(number)
    return taken
