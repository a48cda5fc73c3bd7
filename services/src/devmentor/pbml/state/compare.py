"""Compares the state with PostgreSQL, document by document, and mends what differs."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from devmentor.pbml.db import Connection
from devmentor.pbml.state import metrics, source
from devmentor.pbml.state.entry import Entry, Key
from devmentor.pbml.state.file import StateFile

log = logging.getLogger(__name__)

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class Walk:
    """Goes over all tenants, a page at a time, in a transaction whose snapshot the state is at.

    PostgreSQL computes the items, so that texts and vectors cross the network only where something differs. Ours are
    computed from what is in the file, not read from it: a damaged row is found too.
    """

    def __init__(self, documents: int) -> None:
        self._documents = documents
        self._tenants: list[str] | None = None
        self._after = ""
        self.urgent = False

    def begin(self, tenants: Sequence[str] | None) -> None:
        """From the beginning, without pauses: these tenants, or all."""
        self.urgent = True
        self._tenants = list(tenants) if tenants is not None else None
        self._after = ""

    def stop(self) -> None:
        """The state is another one."""
        self.urgent, self._tenants, self._after = False, None, ""

    async def page(self, c: Connection, file: StateFile, in_thread: InThread, chunks: int) -> int:
        """Compare the next page; how many documents differed."""
        if self._tenants is None:
            self._tenants = sorted({*await source.tenants(c), *await in_thread(file.tenants)})
        if not self._tenants:
            return await self._end(c, file, in_thread)
        tenant = self._tenants[0]
        keys, ended = await source.names(c, tenant, self._after, self._documents, chunks)
        last = None if ended or not keys else keys[-1][1]
        truth = await source.items(c, keys)
        mine: dict[Key, bytes | None] = await in_thread(partial(_items, file, tenant, self._after, last))
        differ = sorted(key for key in {*truth, *mine} if truth.get(key) != mine.get(key))
        if differ:
            metrics.MISMATCHES.labels("postgres").inc(len(differ))
            log.error(
                "documents differ from PostgreSQL",
                extra={"tenant": tenant, "documents": [name for _, name in differ[:10]]},
            )
            await in_thread(partial(_rewrite, file, await source.entries(c, differ, {})))
        metrics.COMPARED.inc(len(truth))
        if last is None:
            if await in_thread(partial(_resum, file, tenant)):
                metrics.MISMATCHES.labels("postgres").inc()
                log.error("the digest was not that of its documents", extra={"tenant": tenant})
            self._tenants.pop(0)
            self._after = ""
        else:
            self._after = last
        return len(differ)

    async def _end(self, c: Connection, file: StateFile, in_thread: InThread) -> int:
        wanted = sorted({*await source.pinned(c), *await in_thread(file.pinned)})
        pins = await source.pins(c, wanted)

        def work() -> None:
            with file.writing():
                file.set_pins(pins)

        await in_thread(work)
        self.stop()
        return 0


def _items(file: StateFile, tenant: str, after: str, last: str | None) -> dict[Key, bytes | None]:
    return {key: file.item(key) for key in file.between(tenant, after, last)}


def _resum(file: StateFile, tenant: str) -> bool:
    with file.writing():
        return file.resum(tenant)


def _rewrite(file: StateFile, entries: list[Entry]) -> None:
    with file.writing():
        file.apply(entries, rewrite=True)
