"""Ending tasks for certain."""

import asyncio
from typing import Any

_AGAIN_AFTER_S = 5.0


async def end(*tasks: "asyncio.Task[Any] | None", again_after_s: float = _AGAIN_AFTER_S) -> None:
    """Cancel tasks and return when each has ended, however it ended.

    A cancellation may be lost: before Python 3.12 `asyncio.wait_for`, with which psycopg's pool waits, returns its
    result where both come at once (python/cpython#86296). A task that goes on is cancelled again.
    """
    given = [task for task in tasks if task is not None]
    left = {task for task in given if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_after_s)
    for task in given:
        if not task.cancelled():
            task.exception()  # looked at: nobody else will
