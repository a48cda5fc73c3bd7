"""The last requests as the engine saw them: the exact body, and where its context came from. Off by default."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Trace:
    """One request. `engine_body` is the JSON text that was sent, None where no engine was asked."""

    request_id: str
    tenant: str
    model: str
    served_by: str = ""
    engine_body: bytes | None = None
    context: str = "none"
    provenance: list[dict[str, Any]] = field(default_factory=list)


class Traces:
    """A bounded number of traces, the oldest dropped first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def add(self, trace: Trace) -> None:
        if not self._size:
            return
        self._traces[trace.request_id] = trace
        self._traces.move_to_end(trace.request_id)
        while len(self._traces) > self._size:
            self._traces.popitem(last=False)

    def get(self, request_id: str) -> Trace | None:
        return self._traces.get(request_id)
