"""The operator's commands that work on what is stored. Results are one JSON object, progress goes to standard error."""

import asyncio
import math
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import procrastinate
import psycopg

from devmentor.common.auth import parse_tenants
from devmentor.pbml import jobs
from devmentor.pbml.db import Connection, Database
from devmentor.pbml.index import Index
from devmentor.pbml.models import watermark
from devmentor.pbml.rebuild import AWAY, Progress, Rebuild
from devmentor.pbml.retention import Retention
from devmentor.pbml.settings import Settings
from devmentor.pbml.state.fetch import read
from devmentor.pbml.state.reader import Reader, StateAway
from devmentor.pbml.store import expiry, points, removal, versions
from devmentor.pbml.store.acceptance import Accepted

_SAY_EVERY_S = 2.0
_GIVE_UP_S = 120.0


class CommandFailed(Exception):
    """What a command could not do, and what to do about it."""


@asynccontextmanager
async def stores(settings: Settings) -> AsyncIterator[tuple[Database, Index]]:
    """PostgreSQL and Qdrant for one command."""
    database, index = Database(settings, "pbml-command"), Index(settings)
    await database.open()
    try:
        yield database, index
    finally:
        await index.close()
        await database.close()


def say(line: str) -> None:
    """To the operator."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


async def state(settings: Settings) -> dict[str, Any]:
    """This host's local state: where it stands, digests by tenant, checkpoints."""
    if settings.state_dir is None:
        raise CommandFailed("this host keeps no state: PBML_STATE_DIR is not set")
    reader = Reader(settings.state_dir)
    said: dict[str, Any] = {"changed": False, "replica": settings.replica, "checkpoints": reader.checkpoints()}
    try:
        return said | await read(reader, lambda view: {"ready": True, **view.notes, "digests": view.digests()}, 30)
    except StateAway as error:
        return said | {"ready": False, "reason": str(error)}


async def ensure_collection(settings: Settings) -> dict[str, Any]:
    """Create the collection if it is missing, compare it otherwise.

    Where the ledger has live documents a missing collection was lost: the workers are told to fill the new one, and
    fetches not to rely on it, before it is there.
    """
    async with stores(settings) as (database, index):
        done: list[str] = []
        if await index.lost():
            try:
                async with database.read(timeout_s=60) as c:
                    live = await points.live_points(c)
            except psycopg.errors.UndefinedTable:
                live = 0
            if live:
                await _rebuild(settings, database, index).want("the collection was lost", incomplete=True)
                done.append(f"rebuild of {live} points wanted; the workers do it")
        done += await index.ensure()
    return {"changed": bool(done), "done": done}


async def rebuild(settings: Settings, *, restart: bool = False, recreate: bool = False) -> dict[str, Any]:
    """Write every point again from PostgreSQL; goes on where one was interrupted, unless it is to `restart`.

    `recreate` drops the collection first and makes it as declared: until the end fetches answer by words and say so.
    """
    async with stores(settings) as (database, index):
        work = _rebuild(settings, database, index)
        before, holder = await work.progress()
        if recreate:
            await work.want("collection to be made anew", incomplete=True)
            # Fetches that began before, and do not know that the index is not to be relied on, end first.
            await asyncio.sleep(settings.fetch_timeout_s)
            await index.drop()
            say(f"collection {settings.collection} dropped")
        elif restart or before is None or before.finished:
            await work.want("asked for by command", incomplete=await index.lost())
        else:
            say(f"goes on: {before.line()}" + (f", {holder} is at it" if holder else ""))
        for done in await index.ensure():
            say(done)
        progress = await _to_the_end(work)
        found = await index.count()
    return {"changed": True, "points": found, "written": progress.done, "seconds": round(progress.seconds, 1)}


async def rebuild_status(settings: Settings) -> dict[str, Any]:
    """How far a rebuild is, and who is at it."""
    async with stores(settings) as (database, index):
        progress, holder = await _rebuild(settings, database, index).progress()
    if progress is None:
        return {"changed": False, "rebuild": None}
    found = {"reason": progress.reason, "finished": progress.finished, "holder": holder, "done": progress.done}
    left = None if progress.finished else max(0, progress.total - progress.done)
    return {"changed": False, "rebuild": {**found, "total": progress.total, "left": left, "rate": round(progress.rate)}}


async def retry(settings: Settings, tenant: str | None, document_id: str | None) -> dict[str, Any]:
    """Queue newest versions again that were given up: one, a tenant's or all."""
    queue = jobs.create(procrastinate.PsycopgConnector())
    retried = 0
    async with stores(settings) as (database, _index), queue.open_async(database.pool):

        async def one(c: Connection, tenant: str, name: str) -> bool:
            revived = await versions.revive(c, tenant, name)
            if revived is not None:
                await jobs.defer(queue, c, tenant, [Accepted(name, *revived)])
            return revived is not None

        if document_id is not None and tenant is not None:
            if not (await database.write(lambda c: one(c, tenant, document_id))).value:
                raise CommandFailed(f"{document_id} of {tenant}: the newest version has not failed, or there is none")
            return {"changed": True, "retried": 1}
        while True:
            async with database.read(timeout_s=30) as c:
                names = await versions.failed(c, tenant, 100)
            done = 0
            for owner, name in names:
                done += (await database.write(partial(one, tenant=owner, name=name))).value
            retried += done
            if not done:
                return {"changed": retried > 0, "retried": retried}


async def delete_tenant(settings: Settings, tenant: str) -> dict[str, Any]:
    """Everything of a tenant: out of every answer at once, then out of Qdrant and PostgreSQL by the workers.

    Not while its key is in force: it could go on writing. Names and ids stay in the ledger, so that whoever follows it
    learns of the deletions.
    """
    if settings.tenants_file is None:
        raise CommandFailed("PBML_TENANTS_FILE is not set: whether the tenant can still write is not known")
    entries = parse_tenants(settings.tenants_file.read_text(), str(settings.tenants_file))
    if any(entry.name == tenant for _digest, entry in entries):
        raise CommandFailed(f"{tenant} has a key in {settings.tenants_file}: take it out, on every host, then delete")
    deleted, newest = 0, None
    async with stores(settings) as (database, index):
        while True:
            committed = await database.write(lambda c: removal.delete_tenant(c, tenant), timeout_s=60)
            number, seq = committed.value
            deleted, newest = deleted + number, seq or newest
            if number < removal.BATCH:
                break
        say(f"{deleted} documents and turns are out of every answer; workers remove what is stored of them")
        moved_at, last = time.monotonic(), -1
        while True:
            async with database.read(timeout_s=60) as c:
                left = await removal.remains(c, tenant)
            if left != last:
                moved_at, last = time.monotonic(), left
                say(f"{left} versions left")
            if not left:
                break
            if time.monotonic() - moved_at > _GIVE_UP_S:
                raise CommandFailed(f"{left} versions are left and no worker removes them; mend that and run it again")
            await asyncio.sleep(_SAY_EVERY_S)
        points_left = await index.count(tenant)
    mark = watermark(newest) if newest is not None else None
    return {"changed": deleted > 0, "deleted": deleted, "watermark": mark, "points_left": points_left}


async def retention(settings: Settings, *, dry_run: bool) -> dict[str, Any]:
    """What is older than its tenant keeps, by tenant and kind; removed unless it is a `dry_run`."""
    async with stores(settings) as (database, _index):
        work = Retention(settings, database, f"{settings.replica}/command/{os.getpid()}")
        found: dict[str, Any] = {}
        for rule in await work.rules():
            async with database.read(timeout_s=60) as c:
                row = await expiry.count(c, rule.tenant, rule.kind, rule.days)
            oldest = row["oldest"].isoformat() if row["oldest"] is not None else None
            found.setdefault(rule.tenant, {})[f"{rule.kind}s"] = {**row, "oldest": oldest, "older_than_days": rule.days}
        wanted = any(kind["number"] for kinds in found.values() for kind in kinds.values())
        while wanted and not dry_run:
            finished = await work.round()
            if finished is None:
                raise CommandFailed("a worker removes what is too old at this moment; run it again to see what is left")
            if finished:
                break
    return {"changed": wanted and not dry_run, "dry_run": dry_run, "too_old": found}


def _rebuild(settings: Settings, database: Database, index: Index) -> Rebuild:
    return Rebuild(database, index, f"{settings.replica}/command/{os.getpid()}", settings.rebuild_page)


async def _to_the_end(work: Rebuild) -> Progress:
    """Do it, or watch the worker that does."""
    said_at, moved_at, last = -math.inf, time.monotonic(), -1

    def report(progress: Progress, who: str = "") -> None:
        nonlocal said_at, moved_at, last
        now = time.monotonic()
        if progress.done != last:
            moved_at, last = now, progress.done
        if now - said_at >= _SAY_EVERY_S or progress.finished:
            said_at = now
            say(f"{who}{progress.line()}")

    while True:
        try:
            done = await work.advance(math.inf, report)
            if done is None:
                seen, holder = await work.progress()
                if seen is not None:
                    report(seen, f"{holder}: " if holder else "")
                    done = seen if seen.finished else None
            if done is not None and done.finished:
                return done
        except AWAY as error:
            say(f"tried again: {type(error).__name__}: {error}"[:300])
        if time.monotonic() - moved_at > _GIVE_UP_S:
            raise CommandFailed(f"no progress for {_GIVE_UP_S:.0f} s; run it again, it goes on where it is")
        await asyncio.sleep(_SAY_EVERY_S)
