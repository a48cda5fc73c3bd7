"""When checkpoints are written: beside the following, which does not wait for them."""

import asyncio
import logging
import time
from pathlib import Path

from devmentor.common import tasks
from devmentor.pbml.state import checkpoint, metrics
from devmentor.pbml.state.file import StateFile

log = logging.getLogger(__name__)


class Copies:
    """One at a time, `every_s` seconds from one to the next, also over a restart."""

    def __init__(self, directory: Path, every_s: float, keep: int) -> None:
        self._directory = directory
        self._every_s = every_s
        self._keep = keep
        self._at: float | None = None
        self._copying: asyncio.Task[None] | None = None
        metrics.CHECKPOINT_EVERY.set(every_s)

    def begin(self, file: StateFile) -> None:
        """Start one, where it is time."""
        if self._copying is not None and not self._copying.done():
            return
        now = time.monotonic()
        if self._at is None:
            newest = self._show_newest()
            self._at = now + self._every_s - (time.time() - newest.made_at) if newest is not None else now
        if now >= self._at:
            self._at = now + self._every_s
            self._copying = asyncio.create_task(self._copy(file), name="state-checkpoint")

    async def written(self) -> None:
        """Wait for one that is under way."""
        if self._copying is not None:
            await self._copying

    async def stop(self) -> None:
        """Its thread can not be stopped; what that leaves behind the next one removes."""
        await tasks.end(self._copying)

    async def _copy(self, file: StateFile) -> None:
        try:
            await asyncio.to_thread(checkpoint.write, file, self._directory, self._keep)
        except Exception:
            metrics.CHECKPOINTS.labels("failed").inc()
            log.exception("no checkpoint was written")
        else:
            metrics.CHECKPOINTS.labels("written").inc()
            self._show_newest()

    def _show_newest(self) -> checkpoint.Checkpoint | None:
        found = checkpoint.listed(self._directory)
        if not found:
            return None
        metrics.CHECKPOINT_AT.set(found[-1].made_at)
        metrics.CHECKPOINT_BYTES.set(found[-1].size)
        return found[-1]
