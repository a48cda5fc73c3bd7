"""Tasks that are to end do, also where a cancellation is lost."""

import asyncio

from devmentor.common import tasks


async def forever() -> None:
    await asyncio.Event().wait()


async def deaf(times: int) -> None:
    """Goes on after so many cancellations."""
    while times:
        try:
            await forever()
        except asyncio.CancelledError:
            times -= 1
    await forever()


async def fails_when_cancelled() -> None:
    try:
        await forever()
    finally:
        raise ValueError


async def test_each_has_ended_whatever_it_ends_with():
    ended = asyncio.create_task(asyncio.sleep(0))
    await ended
    running = [asyncio.create_task(forever()), asyncio.create_task(fails_when_cancelled()), ended]
    await asyncio.sleep(0)
    await tasks.end(*running, None)
    assert [task.done() for task in running] == [True] * 3


async def test_none_at_all():
    await tasks.end()


async def test_one_that_has_lost_its_cancellation_is_cancelled_again():
    running = [asyncio.create_task(deaf(2)), asyncio.create_task(forever())]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await tasks.end(*running, again_after_s=0.05)
    assert [task.cancelled() for task in running] == [True, True]
