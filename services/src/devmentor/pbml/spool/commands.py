"""`devmentor-pbml spool`: what is in this host's spool, out of it by hand, and as lines that POST takes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import procrastinate

from devmentor.common.auth import TenantKeys
from devmentor.pbml import jobs
from devmentor.pbml.commands import CommandFailed, say, stores
from devmentor.pbml.settings import Settings
from devmentor.pbml.spool.entry import Entry, RecordDamaged, decode
from devmentor.pbml.spool.replay import Replayer
from devmentor.pbml.spool.spool import Spool
from devmentor.pbml.spool.store import Reader, SpoolUnusable


async def status(settings: Settings) -> dict[str, Any]:
    """Counts, and why entries are parked. Also while the service runs."""
    waiting, size, oldest_us, parked = 0, 0, 0, []
    for name, entry, why, record_bytes in _entries(_directory(settings)):
        size += record_bytes
        if why is None and entry is not None:
            waiting += 1
            oldest_us = oldest_us or entry.accepted_us
        else:
            named = {"tenant": entry.tenant, "document_id": entry.document_id} if entry is not None else {}
            parked.append({"entry": name, **named, "reason": why})
    oldest_s = round(time.time() - oldest_us / 1e6, 1) if oldest_us else None
    return {"changed": False, "waiting": waiting, "bytes": size, "oldest_s": oldest_s, "parked": parked}


def export(settings: Settings) -> Iterator[str]:
    """A line for each entry that can be read, in order: tenant, time, and the body that POST takes."""
    for name, entry, why, _size in _entries(_directory(settings)):
        if entry is None:
            say(f"{name}: {why}")
            continue
        if entry.conversation_id is None:
            body = {"id": entry.document_id, "title": entry.title, "text": entry.content, "metadata": entry.metadata}
        else:
            body = {"conversation_id": entry.conversation_id, "role": entry.role, "content": entry.content}
        about = {"tenant": entry.tenant, "accepted_at": entry.accepted_at.isoformat(), "idempotency_key": entry.key}
        yield json.dumps({**about, "parked": why, entry.kind: body}, ensure_ascii=False)


async def replay(settings: Settings) -> dict[str, Any]:
    """All of it into PostgreSQL, the parked entries again. CommandFailed while the service runs; database errors."""
    directory = _directory(settings)
    if settings.tenants_file is None:
        raise CommandFailed("PBML_TENANTS_FILE is not set: whose entries may be written is not known")
    spool = Spool(directory, max_bytes=1, min_free_bytes=0, clock_us=lambda: time.time_ns() // 1000)
    await spool.open()
    if spool.broken is not None:
        await spool.close()
        raise CommandFailed(f"spool: {spool.broken}")
    queue = jobs.create(procrastinate.PsycopgConnector())
    try:
        async with stores(settings) as (database, _index), queue.open_async(database.pool):
            replayer = Replayer(spool, database, queue, TenantKeys(settings.tenants_file).has)
            await spool.take_up_parked()
            before = spool.waiting
            while await replayer.step():
                say(f"{spool.waiting} entries left")
        return {"changed": before > 0, "replayed": before - spool.parked, "parked": spool.parked}
    finally:
        await spool.close()


def _directory(settings: Settings) -> Path:
    if settings.spool_dir is None:
        raise CommandFailed("PBML_SPOOL_DIR is not set: this host has no spool")
    return settings.spool_dir


def _entries(directory: Path) -> Iterator[tuple[str, Entry | None, str | None, int]]:
    """(id, entry, why it is parked, bytes of the record)"""
    try:
        with Reader(directory) as reader:
            for stored in reader.all():
                try:
                    entry = decode(stored.record, stored.checksum)
                except RecordDamaged as error:
                    yield stored.entry_id, None, f"damaged: {error}", len(stored.record)
                else:
                    yield stored.entry_id, entry, stored.parked, len(stored.record)
    except SpoolUnusable as error:
        raise CommandFailed(f"spool: {error}") from error
