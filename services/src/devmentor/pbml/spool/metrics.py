"""What the spool tells Prometheus. All are absent where there is no spool."""

from typing import Protocol

from prometheus_client import REGISTRY, Counter, Gauge


class Watched(Protocol):
    """The spool, as far as gauges ask it."""

    @property
    def waiting(self) -> int: ...
    @property
    def parked(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def usable(self) -> bool: ...
    def oldest_s(self) -> float: ...


REPLAYED = Counter(
    "pbml_spool_replayed", "Spooled writes that PostgreSQL has, by what became of them there", ["result"]
)
REFUSED = Counter("pbml_spool_refused", "Writes that neither PostgreSQL nor the spool took", ["reason"])
REPLAY_FAILURES = Counter("pbml_spool_replay_failures", "Replays that broke off and are tried again", ["reason"])


def watch(spool: Watched) -> None:
    """Gauges that ask the spool when they are read."""
    for result in ("written", "superseded", "duplicate"):
        REPLAYED.labels(result)
    for reason in ("full", "unusable"):
        REFUSED.labels(reason)
    gauges = {
        "pbml_spool_entries": ("Writes that wait for PostgreSQL on this host", lambda: spool.waiting),
        "pbml_spool_parked_entries": ("Spooled writes set aside for a reason of their own", lambda: spool.parked),
        "pbml_spool_bytes": ("Bytes that count against the bound", lambda: spool.size),
        "pbml_spool_limit_bytes": ("The bound", lambda: spool.max_bytes),
        "pbml_spool_oldest_seconds": ("Age of the oldest write that waits", spool.oldest_s),
        "pbml_spool_usable": ("0 where the disk or the file failed: until a restart", lambda: float(spool.usable)),
    }
    for name, (text, ask) in gauges.items():
        _gauge(name, text).set_function(ask)


def _gauge(name: str, text: str) -> Gauge:
    """One of this name; a test's second application takes over the first one's."""
    known = REGISTRY._names_to_collectors.get(name)
    return known if isinstance(known, Gauge) else Gauge(name, text)
