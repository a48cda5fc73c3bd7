"""Full disks: a directory of a host moves to a bounded tmpfs, whose bound is then what the disk can still take.

The volume is mounted on the machine and shown in the host, so it keeps its content over a power cut and a reboot, as a
disk does. Undoing lifts the bound and leaves the content where it is: nothing is copied under running services.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath

from lab import supervisor
from lab.errors import HostStateError
from lab.host import CHECKOUT, Host
from lab.mounts import mounted_below
from lab.proc import run, tail
from lab.state import write_atomically


def volumes(host: Host) -> dict[str, Path]:
    """The host's volumes: path inside -> directory on the machine."""
    return {path: host.directory / "volumes" / name for path, name in supervisor.volumes(host.directory).items()}


def open_files(host: Host, path: str) -> list[str]:
    """Programs of the host that have a file below `path` open, which would stay on the old disk."""
    found = set()
    for pid in host.group.processes():
        process = Path(f"/proc/{pid}")
        links = [process / "cwd"]
        with suppress(OSError):  # the process may be gone
            links += (process / "fd").iterdir()
        for link in links:
            with suppress(OSError):  # or this one file closed: the others still count
                target = str(link.readlink())
                if target == path or target.startswith(f"{path}/"):
                    found.add((process / "comm").read_text().strip())
    return sorted(found)


def fill(host: Host, path: str, free_mib: float = 0) -> int:
    """Leave `free_mib` free at a directory of a running host; returns the bytes that are in use there."""
    place = _volume(host, path)
    used = _used(place)
    _bound(place, f"{max(used + int(free_mib * 2**20), os.sysconf('SC_PAGE_SIZE'))}")
    return used


def unfill(host: Host, path: str) -> None:
    """Let a filled directory take data again."""
    place = volumes(host).get(_normal(path))
    if place is None:
        raise HostStateError(f"{host.name}: {path} was not filled", f"filled: {', '.join(volumes(host)) or 'nothing'}")
    _bound(place, "50%")


def _normal(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or len(pure.parts) < 2 or ".." in pure.parts:
        raise HostStateError(f"{path} cannot be filled", "name a directory of the host by its full path, not / itself")
    return str(pure)


def _used(place: Path) -> int:
    stat = os.statvfs(place)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def _bound(place: Path, size: str) -> None:
    run(["mount", "-o", f"remount,size={size}", place])


def _volume(host: Host, path: str) -> Path:
    inside = _normal(path)
    known = volumes(host)
    if inside in known:
        return known[inside]
    init = host.require_init()
    original = Path(f"/proc/{init}/root{inside}")
    if not original.is_dir():
        raise HostStateError(f"{host.name} has no directory {inside}", "make it first: lab exec ... mkdir -p")
    if users := open_files(host, inside):
        raise HostStateError(
            f"{host.name}: {', '.join(users)} use {inside} and would go on writing to the old disk",
            f"stop them and fill again, or make the volume beforehand: lab fill {host.name} {inside} --free-mib 1024",
        )
    place = host.directory / "volumes" / str(len(known))
    place.mkdir(parents=True, exist_ok=True)
    if not mounted_below(place):
        run(["mount", "-t", "tmpfs", "-o", "size=50%", "devmentor-lab-volume", place])
    run(["cp", "-a", f"{original}/.", place])
    shutil.copystat(original, place)
    attached = subprocess.run(
        [sys.executable, "-m", "lab.mountin", str(place), str(init), inside],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if attached.returncode != 0:
        run(["umount", place])
        raise HostStateError(f"{host.name}: {inside} cannot be made a volume: {tail(attached.stderr, 1)}")
    names = {each: folder.name for each, folder in known.items()} | {inside: place.name}
    write_atomically(host.directory / "volumes.json", json.dumps(names) + "\n")
    return place
