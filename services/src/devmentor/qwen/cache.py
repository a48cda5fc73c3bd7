"""The exact cache: L1 in this process, L2 in Valkey, one entry per question.

An entry holds the context version that its answer was made with. It is fresh where that is still the version and its
age is below the level's TTL. What is not fresh any more stays for a while as a stale answer: the first fallback
when no engine answers.

L2 fails open: each operation has a deadline, a node that failed is left alone for a moment, and a miss is all that a
request sees of it.
"""

import asyncio
import json
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from valkey.asyncio import BlockingConnectionPool, Valkey
from valkey.asyncio.connection import Connection
from valkey.exceptions import ValkeyError

from devmentor.qwen import metrics, rendezvous
from devmentor.qwen.purge import Purged, Purges, Scope, matches

log = logging.getLogger(__name__)

Level = Literal["l1", "l2"]

_FORMAT = 1
_OVERHEAD = 400  # bytes of an L1 entry beside its payload: key, objects, the dictionary's slot
_NODE_REST_S = 2.0
_NODE_TIMEOUTS = 3
_NODE_CONNECTIONS = 16
_PURGES = "qwen:purges"  # a hash on every node: scope to generation
_PURGE_S = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached answer. `stored_at` is wall-clock time, because the entry travels between hosts."""

    payload: bytes
    version: str
    stored_at: float
    context: str = "none"
    generation: int = 0
    """Of the purges that were known when its question came in."""

    def encode(self) -> bytes:
        """For L2: a line of JSON, then the payload."""
        head = {"f": _FORMAT, "v": self.version, "t": round(self.stored_at, 3), "c": self.context, "g": self.generation}
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + self.payload

    @classmethod
    def decode(cls, raw: bytes) -> "Entry | None":
        """None where it was written by a release with another format."""
        head, separator, payload = raw.partition(b"\n")
        try:
            fields = json.loads(head)
            if not separator or fields["f"] != _FORMAT:
                return None
            return cls(payload, fields["v"], fields["t"], fields["c"], fields.get("g", 0))
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the cache knows: a fresh entry and its level, or perhaps a stale one."""

    hit: Entry | None = None
    level: Level | None = None
    stale: Entry | None = None


class L1:
    """Least recently used entries within a bound of bytes."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.time) -> None:
        self._max = max_bytes
        self.ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> tuple[Entry, bool] | None:
        """The entry and whether it is within this level's TTL."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        entry, since = found
        return entry, self._clock() - since < self.ttl_s

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry, and drop as many of the least recently used as that takes."""
        size = len(entry.payload) + _OVERHEAD
        self.drop(key)
        if size > self._max:
            return
        self._entries[key] = entry, self._clock()
        self._bytes += size
        while self._bytes > self._max:
            _, (old, _) = self._entries.popitem(last=False)
            self._bytes -= len(old.payload) + _OVERHEAD
        self._report()

    def drop(self, key: str) -> None:
        """Forget an entry, if there."""
        found = self._entries.pop(key, None)
        if found is not None:
            self._bytes -= len(found[0].payload) + _OVERHEAD
            self._report()

    def drop_scope(self, scope: str) -> int:
        """Forget what a purge's scope covers; how many that were."""
        gone = [key for key in self._entries if matches(scope, key)]
        for key in gone:
            self.drop(key)
        return len(gone)

    def _report(self) -> None:
        metrics.CACHE_ENTRIES.set(len(self._entries))
        metrics.CACHE_BYTES.set(self._bytes)


class _TlsConnection(Connection):  # type: ignore[misc] # untyped for mypy: follow_imports = skip
    """valkey-py's own TLS trusts the system's CAs beside the given one, and reads its files once."""

    def __init__(self, *, tls: ssl.SSLContext, **options: Any) -> None:
        self._tls = tls
        super().__init__(**options)

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._tls}


class L2:
    """Independent Valkey nodes; rendezvous hashing says which one has a key."""

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        user: str,
        password: str,
        tls: ssl.SSLContext | None,
        budget_s: float,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget_s = budget_s
        self._keep_s = max(1, int(keep_s))
        self._clock = clock
        self._resting: dict[str, float] = {}
        self._timeouts: dict[str, int] = {}
        self._clients = {node: self._client(node, user, password, tls) for node in nodes}

    @staticmethod
    def _client(node: str, user: str, password: str, tls: ssl.SSLContext | None) -> Valkey:
        host, _, port = node.rpartition(":")
        options: dict[str, Any] = {
            "host": host.strip("[]"),
            "port": int(port),
            "username": user,
            "password": password or None,
        }
        if tls is not None:
            options |= {"connection_class": _TlsConnection, "tls": tls}
        pool = BlockingConnectionPool(max_connections=_NODE_CONNECTIONS, timeout=1, **options)
        return Valkey(connection_pool=pool)

    def node_of(self, key: str) -> str | None:
        """The node that has a key, of those that are not resting after a failure."""
        now = self._clock()
        return rendezvous.choose(key, [node for node in self._clients if self._resting.get(node, 0) <= now])

    async def get(self, key: str) -> Entry | None:
        """The entry, None where there is none or the node does not say in time."""
        raw = await self._run("get", key, lambda client: client.get(key))
        return Entry.decode(raw) if raw else None

    async def put(self, key: str, entry: Entry) -> None:
        """Store an entry until it is too old even as a stale one."""
        await self._run("set", key, lambda client: client.set(key, entry.encode(), ex=self._keep_s))

    async def purges(self, known: Mapping[str, int]) -> dict[str, int] | None:
        """The purges that any node knows; None where no node answers. A node that knows less than `known` is told."""
        told: dict[str, int] = {}
        heard = False
        for client in self._clients.values():
            try:
                async with asyncio.timeout(self._budget_s * 4):
                    has = {scope.decode(): int(at) for scope, at in (await client.hgetall(_PURGES)).items()}
                    missing = {scope: at for scope, at in known.items() if at > has.get(scope, 0)}
                    if missing:
                        await client.hset(_PURGES, mapping=missing)
            except (ValkeyError, OSError, TimeoutError, ValueError):
                continue
            heard = True
            told |= {scope: max(at, told.get(scope, 0)) for scope, at in has.items()}
        return told if heard else None

    async def purge(self, scope: str, generation: int, done: Purged) -> None:
        """Tell every node of a purge and remove what it covers; `done` gets counts and errors by node."""
        for node, client in self._clients.items():
            try:
                async with asyncio.timeout(_PURGE_S):
                    await client.hset(_PURGES, mapping={scope: generation})
                    done.nodes[node] = ""
                    keys: list[bytes] = []
                    async for key in client.scan_iter(match=f"qwen:{scope}:*", count=1000):
                        keys.append(key)
                        if len(keys) >= 1000:
                            done.l2 += await client.unlink(*keys)
                            keys.clear()
                    if keys:
                        done.l2 += await client.unlink(*keys)
            except (ValkeyError, OSError, TimeoutError) as error:
                done.nodes[node] = f"{type(error).__name__}: {error}"[:200]

    async def connect(self) -> None:
        """Open a first connection to each node, so that no request pays for the handshake."""
        for node, client in self._clients.items():
            try:
                async with asyncio.timeout(2.0):
                    await client.ping()
            except (ValkeyError, OSError, TimeoutError) as error:
                self._failed(node, error)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def _run(self, operation: str, key: str, call: Callable[[Valkey], Any]) -> Any:
        node = self.node_of(key)
        if node is None:
            return None
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._budget_s):
                result = await call(self._clients[node])
        except (ValkeyError, OSError, TimeoutError) as error:
            self._failed(node, error)
            return None
        metrics.CACHE_SECONDS.labels(operation).observe(time.perf_counter() - start)
        self._timeouts[node] = 0
        return result

    def _failed(self, node: str, error: Exception) -> None:
        metrics.CACHE_ERRORS.labels(node, type(error).__name__).inc()
        if isinstance(error, TimeoutError):
            # A pause of this process or of the network looks the same once; not several times in a row.
            self._timeouts[node] = self._timeouts.get(node, 0) + 1
            if self._timeouts[node] < _NODE_TIMEOUTS:
                return
        self._timeouts[node] = 0
        self._resting[node] = self._clock() + _NODE_REST_S
        log.warning(
            "cache node left alone for a moment", extra={"node": node, "reason": f"{type(error).__name__}: {error}"}
        )


class AnswerCache:
    """Both levels as one."""

    def __init__(
        self,
        l1: L1,
        l2: L2 | None,
        *,
        l2_ttl_s: float,
        stale_s: float,
        entry_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._l1 = l1
        self._l2 = l2
        self._l2_ttl_s = l2_ttl_s
        self._stale_s = stale_s
        self._entry_bytes = entry_bytes
        self._clock = clock
        self.purges = Purges()
        self._heard_at = time.monotonic()
        self._count = {
            (level, result): metrics.CACHE_LOOKUPS.labels(level, result)
            for level in ("l1", "l2")
            for result in ("hit", "stale", "miss")
        }

    @property
    def generation(self) -> int:
        """Of the purges that are known here: what an answer to a question that comes now is stored with."""
        return self.purges.latest

    async def learn_purges(self) -> list[str] | None:
        """Ask the nodes for purges that other instances made, and drop what they cover. The scopes that were new; None
        where no node answered."""
        told = await self._l2.purges(self.purges.known) if self._l2 is not None else None
        if told is None:
            return None
        self._heard_at = time.monotonic()
        new = self.purges.learn(told)
        for scope in new:
            self._l1.drop_scope(scope)
        return new

    async def purge(self, scope: Scope) -> Purged:
        """Take back what a scope covers: here at once, at the other instances when they learn of it."""
        generation = self.purges.next()
        self.purges.learn({scope.text: generation})
        done = Purged(generation, self._l1.drop_scope(scope.text))
        if self._l2 is not None:
            await self._l2.purge(scope.text, generation, done)
        return done

    async def lookup(self, key: str, version: str | None, stale_s: int | None = None) -> Lookup:
        """As `find`, without a stale entry that is `stale_s` seconds old or older."""
        found = await self.find(key, version)
        if found.stale is not None and stale_s is not None and self._clock() - found.stale.stored_at >= stale_s:
            return replace(found, stale=None)
        return found

    async def find(self, key: str, version: str | None) -> Lookup:
        """Look in L1, then in L2. A `version` of None (not known) can only find stale entries."""
        stale: Entry | None = None
        found = self._l1.get(key)
        if found is not None and self.purges.gone(key, found[0].generation):
            self._l1.drop(key)
            found = None
        if found is not None:
            entry, within_ttl = found
            if within_ttl and self._fresh(entry, version):
                self._count["l1", "hit"].inc()
                return Lookup(hit=entry, level="l1")
            stale = self._usable(entry) if within_ttl or self._hears_of_purges else None
        self._count["l1", "stale" if stale else "miss"].inc()
        if self._l2 is None:
            return Lookup(stale=stale)
        remote = await self._l2.get(f"qwen:{key}")
        if remote is not None and self.purges.gone(key, remote.generation):
            remote = None
        if remote is not None and self._fresh(remote, version):
            self._count["l2", "hit"].inc()
            self._l1.put(key, remote)
            return Lookup(hit=remote, level="l2")
        usable = self._usable(remote) if remote is not None else None
        self._count["l2", "stale" if usable else "miss"].inc()
        if usable is not None and (stale is None or usable.stored_at > stale.stored_at):
            stale = usable
        return Lookup(stale=stale)

    def again(self, key: str, version: str | None) -> Entry | None:
        """A fresh entry that came into L1 since a lookup."""
        found = self._l1.get(key)
        return found[0] if found is not None and found[1] and self._fresh(found[0], version) else None

    def keep(self, key: str, version: str, payload: bytes, context: str, generation: int) -> Entry | None:
        """Keep an answer on L1; None where it is too large to be cached, or was purged while it was made."""
        if len(payload) > self._entry_bytes or self.purges.gone(key, generation):
            return None
        entry = Entry(payload, version, self._clock(), context, generation)
        self._l1.put(key, entry)
        return entry

    async def share(self, key: str, entry: Entry) -> None:
        """Keep an answer on L2."""
        if self._l2 is not None:
            await self._l2.put(f"qwen:{key}", entry)

    async def connect(self) -> None:
        if self._l2 is not None:
            await self._l2.connect()

    async def close(self) -> None:
        if self._l2 is not None:
            await self._l2.close()

    @property
    def _hears_of_purges(self) -> bool:
        """Whether purges were heard of within L1's TTL. If not, its older entries may have been purged elsewhere."""
        return self._l2 is None or time.monotonic() - self._heard_at < self._l1.ttl_s

    def _fresh(self, entry: Entry, version: str | None) -> bool:
        return version is not None and entry.version == version and self._clock() - entry.stored_at < self._l2_ttl_s

    def _usable(self, entry: Entry) -> Entry | None:
        return entry if self._clock() - entry.stored_at < self._stale_s else None
