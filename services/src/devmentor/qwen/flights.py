"""Single flight: equal questions that come while one is being answered share that answer.

A flight is one making of an answer, in a task of its own: it goes on while anybody has a seat on it, and is cancelled,
down to the engine, when the last one leaves. Who comes late to a stream reads it from its start.

Memory is bounded: a flight keeps the last `bound` bytes of its stream. While the start is among them others may join.
The fastest reader sets the pace (the engine is not read from while that one is `bound` bytes behind); a reader that
falls behind what is kept is cut off with LaggedError rather than let hold up the others.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence

from devmentor.common import tasks
from devmentor.qwen import metrics
from devmentor.qwen.answers import Whole
from devmentor.qwen.engine_errors import EngineError, StreamBrokenError
from devmentor.qwen.relay import Relay

log = logging.getLogger(__name__)

Made = Whole | Relay
Work = Callable[[], Awaitable[Made]]


# What of a flight's failures need not be so for another one of its passengers: each tries once more, together again.
TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


class LaggedError(Exception):
    """A reader was too slow for the others."""


class Flight:
    """One making of an answer, and its events as far as they are kept."""

    def __init__(self, work: Work, bound: int, landed: Callable[["Flight"], None]) -> None:
        """`landed` is told when nobody may join any more, once or oftener."""
        self._bound = bound
        self._landed = landed
        self._begun: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self._kept: deque[tuple[list[bytes], int]] = deque()  # a block of events, and the offset of its end in bytes
        self._first = 0  # number of the first block that is kept
        self._written = 0
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self.seats: set[Seat] = set()
        self._task = asyncio.create_task(self._fly(work))

    async def _fly(self, work: Work) -> None:
        try:
            made = await work()
        except asyncio.CancelledError:
            self._begun.cancel()
            raise
        except Exception as error:
            self._landed(self)  # first: who tries again must not find this one
            self._begun.set_exception(error)
            self._begun.exception()  # the last seat may be empty by now
            return
        self._begun.set_result(made)
        if isinstance(made, Whole):
            self._landed(self)
            return
        try:
            async with contextlib.aclosing(made.events()) as events:
                async for block in events:
                    await self._put(block)
        except EngineError as error:
            self._error = error
        except Exception as error:
            log.exception("stream failed")
            self._error = StreamBrokenError("internal", type(error).__name__)
        finally:
            self._landed(self)
            try:
                await made.close()
            except Exception:
                log.exception("a stream was not closed")
            finally:  # or its readers would wait for ever
                self._ended = True
                self._news.set()

    async def _put(self, block: list[bytes]) -> None:
        while self._written - self._fastest() >= self._bound:
            self._taken.clear()
            await self._taken.wait()
        self._written += sum(map(len, block))
        self._kept.append((block, self._written))
        while self._kept[0][1] <= min(self._fastest(), self._written - self._bound):
            self._kept.popleft()
            if not self._first:
                self._landed(self)
            self._first += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _fastest(self) -> int:
        return max((seat.read for seat in self.seats), default=self._written)

    async def begun(self) -> Made:
        """The whole answer, or the stream that has begun. Raises what its making raised."""
        return await asyncio.shield(self._begun)

    async def next(self, at: int) -> tuple[list[list[bytes]], int] | None:
        """Blocks from number `at` on and the offset of their end; None after the last. Raises what ended the stream."""
        while True:
            if at < self._first:
                raise LaggedError("this reader was too far behind the others")
            blocks = [self._kept[number] for number in range(at - self._first, len(self._kept))]
            if blocks:
                return [block for block, _ in blocks], blocks[-1][1]
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            await self._news.wait()

    def heard(self) -> None:
        """A reader got on, or left."""
        self._taken.set()

    async def abandon(self) -> None:
        """Nobody waits any more: end the work, down to the engine."""
        if not self._task.done():
            self._landed(self)
            await tasks.end(self._task)


class Seat:
    """One request's place on a flight. `leave` must be called."""

    def __init__(self, flight: Flight, *, leads: bool) -> None:
        self._flight = flight
        self.leads = leads
        self.read = 0  # bytes
        flight.seats.add(self)

    async def begun(self) -> Made:
        """As Flight.begun."""
        return await self._flight.begun()

    async def blocks(self) -> AsyncGenerator[list[bytes]]:
        """The stream's events from its start. Raises EngineError where it broke, LaggedError for the slow."""
        at = 0
        while (more := await self._flight.next(at)) is not None:
            blocks, self.read = more
            at += len(blocks)
            self._flight.heard()
            yield [event for block in blocks for event in block]

    async def leave(self) -> None:
        """Give the place up; the last one ends the flight."""
        if self in self._flight.seats:
            self._flight.seats.discard(self)
            self._flight.heard()
            if not self._flight.seats:
                await self._flight.abandon()


class Flights:
    """The flights that others may join, by what they answer."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._flights: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, keys: Sequence[Hashable]) -> Seat | None:
        """A seat on a flight under one of `keys`, None where there is none that can be read from its start."""
        for key in keys:
            flight = self._flights.get(key)
            if flight is not None:
                metrics.SHARED.inc()
                return Seat(flight, leads=False)
        return None

    def start(self, keys: Sequence[Hashable], work: Work) -> Seat:
        """A seat on a new flight, which others find under the first of `keys`; without keys nobody does."""
        key = keys[0] if keys else None

        def landed(flight: Flight) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]

        flight = Flight(work, self._bound, landed)
        if key is not None:
            self._flights[key] = flight
        return Seat(flight, leads=True)
