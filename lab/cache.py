"""Keep the shared cache from growing for ever, without taking a layer from under a lab."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.bake import read_layer
from lab.state import CACHE, locked, state_root

_LOCK = CACHE / "use.lock"
_REMOVED = CACHE / "removed"


@contextmanager
def cache_in_use() -> Iterator[None]:
    """Held from choosing layers until the lab's record names them."""
    with locked(_LOCK, shared=True):
        yield


def used_layers() -> set[Path]:
    """Every directory of the cache that a host of any lab stands on, running (whatever its state folder) or not."""
    mounts = Path("/proc/self/mountinfo").read_text()
    found = {Path(layer) for layer in re.findall(rf"{re.escape(str(CACHE))}[^:,\s]+", mounts)}
    for record in state_root().glob("*/lab.json"):
        for host in json.loads(record.read_text())["hosts"].values():
            found.update(Path(layer) for layer in host["lower"])
    return found


def prune() -> list[Path]:
    """Remove root file systems and layers that no lab uses; returns them."""
    with locked(_LOCK):
        if _REMOVED.exists():  # what an interrupted prune left
            shutil.rmtree(_REMOVED)
        used = used_layers()
        layers = [path for path in CACHE.glob("baked/*/*") if path.is_dir() and path / "upper" not in used]
        rootfs = [path for path in CACHE.glob("rootfs/*") if path.is_dir() and path not in used]
        # Whatever moment this ends at, what is still there stands on something: the topmost goes first.
        unused = [*sorted(layers, key=_height, reverse=True), *rootfs]
        for number, path in enumerate(unused):
            # A directory that is there counts as whole: it goes in one step, its content afterwards.
            _REMOVED.mkdir(exist_ok=True)
            path.rename(_REMOVED / str(number))
        if unused:
            shutil.rmtree(_REMOVED)
    return unused


def _height(path: Path) -> int:
    layer = read_layer(path)
    return len(layer.below) if layer else 0
