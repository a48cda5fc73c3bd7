"""Reads all of PostgreSQL into an empty file, page by page, each in a short transaction.

Pages are of different moments. The snapshot from before the first page is noted: following from it reads again whatever
changed since, and so ends at one moment. How far it is is in the file, and a killed process goes on from there.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from devmentor.pbml.db import Connection
from devmentor.pbml.state import source
from devmentor.pbml.state.file import StateFile
from devmentor.pbml.state.source import View

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]

_SEQS = 50_000
_BEGIN, _NUMBERS, _TENANT = "", "seqs:", "tenant:"


class Loader:
    """Steps of a load; `loading` in the file says which is next."""

    def __init__(self, file: StateFile, in_thread: InThread, documents: int, chunks: int) -> None:
        self._file = file
        self._in_thread = in_thread
        self._documents = documents
        self._chunks = chunks

    async def begin(self, view: View) -> None:
        """Note where following will begin."""
        await self._write(
            lambda: self._file.note(
                snapshot=view.snapshot, cluster=view.cluster, timeline=view.timeline, loading=f"{_NUMBERS}0"
            )
        )

    async def page(self, c: Connection) -> bool:
        """The next one; whether it was the last."""
        at: str = await self._in_thread(lambda: self._file.meta("loading")) or f"{_NUMBERS}0"
        if at.startswith(_NUMBERS):
            await self._numbers(c, int(at.removeprefix(_NUMBERS)))
            return False
        tenant, _, after = at.removeprefix(_TENANT).partition("\n")
        return await self._page(c, tenant, after)

    async def _numbers(self, c: Connection, after: int) -> None:
        found = await source.seqs(c, after, _SEQS)

        def work() -> None:
            self._file.add_seqs(found)
            self._file.note(loading=f"{_NUMBERS}{found[-1][0]}" if found else f"{_TENANT}\n")

        await self._write(work)

    async def _page(self, c: Connection, tenant: str, after: str) -> bool:
        if not tenant:
            return await self._next(c, tenant)
        keys, ended = await source.names(c, tenant, after, self._documents, self._chunks)
        entries = await source.entries(c, keys, {})

        def work() -> None:
            self._file.apply(entries)
            if keys:
                self._file.note(loading=f"{_TENANT}{tenant}\n{keys[-1][1]}")

        await self._write(work)
        return await self._next(c, tenant) if ended else False

    async def _next(self, c: Connection, tenant: str) -> bool:
        """To the next tenant; after the last one the pins, and the end."""
        after = [name for name in sorted(await source.tenants(c)) if name > tenant]
        if after:
            await self._write(lambda: self._file.note(loading=f"{_TENANT}{after[0]}\n"))
            return False
        pins = await source.pins(c, await source.pinned(c))

        def work() -> None:
            self._file.set_pins(pins)
            self._file.note(loading=None, loaded="1")

        await self._write(work)
        return True

    async def _write(self, work: Callable[[], None]) -> None:
        def whole() -> None:
            with self._file.writing():
                work()

        await self._in_thread(whole)
