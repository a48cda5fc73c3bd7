"""Where a replica's state is on the disk.

`current` is a link to the directory of the file that is in use. Another file, an empty one or a checkpoint's, is made
beside it and the link replaced: a reader never has one file's pages and another one's log.
"""

import os
import shutil
import uuid
from pathlib import Path

_FILE = "state.db"
_LINK = "current"
_PREFIX = "file-"
CHECKPOINTS = "checkpoints"


def current(directory: Path) -> Path | None:
    """The file in use; None where there is none."""
    link = directory / _LINK
    return directory / link.readlink().name / _FILE if link.is_symlink() else None


def another(directory: Path) -> Path:
    """A place for a new file, which is not in use yet."""
    made = directory / f"{_PREFIX}{uuid.uuid4().hex}"
    made.mkdir(mode=0o700)
    return made / _FILE


def use(directory: Path, file: Path) -> None:
    """The file is the one in use from now on. What was in use before is removed."""
    link = directory / f"{_LINK}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(file.parent.name)
    link.replace(directory / _LINK)
    sync(directory)
    tidy(directory)


def tidy(directory: Path) -> None:
    """Remove files that are not in use: of a process that was killed on its way to another one."""
    used = current(directory)
    for found in directory.glob(f"{_PREFIX}*"):
        if used is None or found != used.parent:
            shutil.rmtree(found)


def sync(path: Path) -> None:
    """The file, or the directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
