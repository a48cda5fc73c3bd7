"""How long a request may take. A deadline is a time of the monotonic clock; None is none."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator

from devmentor.common.errors import ApiError
from devmentor.qwen import metrics
from devmentor.qwen.engine import Engine


def after(seconds: float | None) -> float | None:
    """The deadline of a request that came now."""
    return None if seconds is None else time.monotonic() + seconds


def left_s(deadline: float | None) -> float | None:
    """Seconds until then, at least 0."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


@contextlib.asynccontextmanager
async def kept(deadline: float | None, endpoint: str, engine: Engine) -> AsyncIterator[None]:
    """Ends what runs inside when the deadline passes, down to the engine. Raises ApiError (429) then."""
    try:
        async with asyncio.timeout(left_s(deadline)) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        metrics.DEADLINES.labels(endpoint).inc()
        # 429, not 504: the gateway counts a 5xx as an error and would eject a healthy server.
        raise ApiError(
            429,
            "deadline_exceeded",
            "the answer was not ready by the deadline of X-DevMentor-Deadline-Ms",
            headers={"Retry-After": str(min(60, max(1, math.ceil(engine.pool.expected_wait_s))))},
        ) from None
