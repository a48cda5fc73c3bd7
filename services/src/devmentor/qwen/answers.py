"""What an answer is on its way to a client, and what is known of the request that it is for."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from devmentor.qwen.cache import Lookup
from devmentor.qwen.pbml import Caller, Found
from devmentor.qwen.requests import ChatRequest
from devmentor.qwen.semantic import Candidate
from devmentor.qwen.trace import Trace

NO_VERSION = ""  # of answers that no context went into


@dataclass(frozen=True, slots=True)
class Served:
    """What the response headers tell."""

    by: str
    cache: str
    context: str = "none"
    headers: Mapping[str, str] = field(default_factory=dict)  # further ones, of this request alone


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is complete."""

    payload: bytes
    served: Served


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that comes in blocks of bytes, each of whole events. `close` must be called, begun or not."""

    blocks: AsyncGenerator[bytes]
    close: Callable[[], Awaitable[None]]
    served: Served


@dataclass(slots=True)
class Job:
    """One chat request and what was learned about it on the way."""

    request: ChatRequest
    caller: Caller
    request_id: str
    key: str
    lookup: Lookup = field(default_factory=Lookup)
    found: Found | None = None
    context: str = "none"
    version: str | None = NO_VERSION
    trace: Trace | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    semantic: Candidate | None = None
    looked_up_version: str | None = None
    deadline: float | None = None
    generation: int = 0  # of the cache's purges, when the question came
    joined: bool = False  # whether an equal question's flight answers it

    @property
    def cache_header(self) -> str:
        return "miss" if self.request.cache.read else "bypass"

    def served(self, by: str) -> Served:
        if self.trace is not None:
            self.trace.served_by = by
        return Served(by, self.cache_header, self.context, self.headers)

    @property
    def storable(self) -> bool:
        """Whether the answer is one for the cache: made with everything that belongs into it."""
        return self.request.cache.write and self.context != "degraded" and self.version is not None


async def as_blocks(events: bytes) -> AsyncGenerator[bytes]:
    """A stream that is there already."""
    yield events


async def nothing() -> None:
    """Closes what has nothing to close."""
