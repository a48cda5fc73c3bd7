"""Checkpoints: whole copies of the state's file, each with a manifest that holds its SHA-256. Blocking calls.

A copy is written under another name, synced, renamed, and only then gets its manifest, in the same way: what has a
manifest was whole. A copy without one is of a process that was killed, and is removed.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devmentor.pbml.state import place
from devmentor.pbml.state.file import StateFile
from devmentor.pbml.state.metrics import CHECKPOINTS

log = logging.getLogger(__name__)

_BLOCK = 1 << 20


class CheckpointDamaged(Exception):
    """The copy is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A copy and what its manifest says; `made_at` is Unix time."""

    path: Path
    sha256: str
    size: int
    made_at: float


def write(file: StateFile, directory: Path, keep: int) -> Checkpoint:
    """Copy the file, and forget all but the newest `keep` checkpoints."""
    directory.mkdir(mode=0o700, exist_ok=True)
    _tidy(directory)
    made_at = time.time()
    path = directory / f"{int(made_at * 1000):015d}.db"
    unfinished = path.with_suffix(".db.part")
    file.copy_to(unfinished)
    place.sync(unfinished)
    digest = _sha256(unfinished)
    unfinished.replace(path)
    place.sync(directory)
    made = Checkpoint(path, digest, path.stat().st_size, made_at)
    _write_manifest(made)
    place.sync(directory)
    for old in _listed(directory)[:-keep]:
        # The manifest first: a copy without one is nothing.
        _manifest(old).unlink()
        old.unlink()
    return made


def listed(directory: Path) -> list[Checkpoint]:
    """Those with a manifest that can be read, oldest first."""
    found = []
    for path in _listed(directory):
        try:
            said = json.loads(_manifest(path).read_text())
            found.append(Checkpoint(path, str(said["sha256"]), int(said["bytes"]), float(said["made_at"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _damaged(path, f"manifest: {type(error).__name__}: {error}")
    return found


def restore(directory: Path, target: Path) -> Checkpoint | None:
    """Copy the newest whole checkpoint to `target`, for a StateFile; None where there is none."""
    for checkpoint in reversed(listed(directory)):
        try:
            _copy(checkpoint, target)
        except (OSError, CheckpointDamaged) as error:
            _damaged(checkpoint.path, str(error))
            target.unlink(missing_ok=True)
        else:
            return checkpoint
    return None


def _copy(checkpoint: Checkpoint, target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for block in _blocks(checkpoint.path):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != checkpoint.sha256:
        raise CheckpointDamaged(f"SHA-256 is {digest.hexdigest()}, the manifest says {checkpoint.sha256}")


def _damaged(path: Path, reason: str) -> None:
    CHECKPOINTS.labels("damaged").inc()
    log.error("checkpoint passed over", extra={"path": str(path), "reason": reason})


def _write_manifest(made: Checkpoint) -> None:
    manifest = _manifest(made.path)
    unfinished = manifest.with_suffix(".json.part")
    content = {"sha256": made.sha256, "bytes": made.size, "made_at": made.made_at}
    unfinished.write_text(json.dumps(content) + "\n")
    place.sync(unfinished)
    unfinished.replace(manifest)


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _listed(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.db") if _manifest(path).exists())


def _tidy(directory: Path) -> None:
    for path in directory.glob("*.part*"):
        path.unlink()
    for path in directory.glob("*.db"):
        if not _manifest(path).exists():
            path.unlink()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while block := source.read(_BLOCK):
            yield block


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()
