"""Which file the state is in: the one in use, else the newest whole checkpoint, else an empty one. Blocking calls."""

import logging
from pathlib import Path

from devmentor.pbml.state import checkpoint, place
from devmentor.pbml.state.file import StateFile, StateUnreadable

log = logging.getLogger(__name__)

FILE, CHECKPOINT, POSTGRES = "file", "checkpoint", "postgres"


class Files:
    """`origin` says where the open file came from."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.origin = ""

    def open(self) -> StateFile:
        """At a start."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        place.tidy(self._directory)
        used = place.current(self._directory)
        if used is not None:
            try:
                return self._opened(used, FILE)
            except StateUnreadable as error:
                log.error("the state's file can not be used", extra={"reason": str(error)})
        return self._restored() or self._made()

    def instead_of(self, damaged: StateFile) -> StateFile:
        """A checkpoint's; where that is what was damaged, an empty one."""
        damaged.close()
        return (None if self.origin == CHECKPOINT else self._restored()) or self._made()

    def empty(self, old: StateFile) -> StateFile:
        """To be loaded anew."""
        old.close()
        return self._made()

    def _opened(self, path: Path, origin: str) -> StateFile:
        file = StateFile(path)
        file.open()
        self.origin = origin
        return file

    def _restored(self) -> StateFile | None:
        target = place.another(self._directory)
        if checkpoint.restore(self._directory / place.CHECKPOINTS, target) is None:
            return None
        try:
            file = self._opened(target, CHECKPOINT)
        except StateUnreadable as error:
            log.error("the checkpoint can not be used", extra={"reason": str(error)})
            return None
        place.use(self._directory, target)
        return file

    def _made(self) -> StateFile:
        target = place.another(self._directory)
        file = self._opened(target, POSTGRES)
        place.use(self._directory, target)
        return file
