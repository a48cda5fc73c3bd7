"""Mounts of the lab, found by their place below its state directory rather than from a record."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from lab.errors import TimeoutExpired
from lab.proc import run


def mounted_below(directory: Path) -> list[Path]:
    """Mount points at or below a directory, the innermost first."""
    prefix = str(directory)
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), line.split()[4])
        if point == prefix or point.startswith(f"{prefix}/"):
            points.append(Path(point))
    return points[::-1]


def overlay(lower: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
    """Mount an overlay; does nothing where one is mounted already. The first lower layer is the topmost."""
    if target in mounted_below(target):
        return
    layers = ":".join(str(layer) for layer in lower)
    options = f"lowerdir={layers},upperdir={upper},workdir={work}"
    run(["mount", "-t", "overlay", "devmentor-lab", "-o", options, target])


def unmount_below(directory: Path) -> None:
    """Unmount everything at or below a directory; waits a moment for the last user to go."""
    deadline = time.monotonic() + 5
    while points := mounted_below(directory):
        for point in points:
            run(["umount", point], check=False)
        if mounted_below(directory):
            if time.monotonic() > deadline:
                raise TimeoutExpired(f"{points[0]} is still in use", f"see who: fuser -vm {points[0]}")
            time.sleep(0.05)
