"""`devmentor-pbml summaries`: how far summaries are, and taking them up again. Results are one JSON object."""

from functools import partial
from typing import Any

from devmentor.pbml.db import Connection, Database
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import folds, generations, summaries

_SHOWN = 100


async def status(settings: Settings) -> dict[str, Any]:
    """What waits, what was given up (at most 100, oldest first) and why, and how many summaries there are by level."""
    database = await _opened(settings)
    try:
        async with database.read(timeout_s=30) as c:
            counts, parked = await folds.counts(c), await folds.parked(c, _SHOWN)
            levels = await summaries.levels(c)
    finally:
        await database.close()
    return {
        "changed": False,
        "due": counts.due,
        "parked": counts.parked,
        "given_up": [{"tenant": t, "conversation_id": name, "reason": reason} for t, name, reason in parked],
        "summaries": levels,
    }


async def retry(settings: Settings, tenant: str | None, conversation_id: str | None) -> dict[str, Any]:
    """Take up again what was given up: a conversation, a tenant's or all."""
    database = await _opened(settings)
    try:
        retried = (await database.write(lambda c: folds.retry(c, tenant, conversation_id), timeout_s=30)).value
    finally:
        await database.close()
    return {"changed": retried > 0, "retried": retried}


async def rebuild(settings: Settings, tenant: str, conversation_id: str | None) -> dict[str, Any]:
    """Drop the summaries of a conversation, or of all of a tenant's: they are made anew, by the model of today."""
    database = await _opened(settings)

    async def one(c: Connection, name: str) -> None:
        await generations.bump_conversation(c, tenant, name)
        await summaries.remove_conversation(c, tenant, name)

    try:
        if conversation_id is not None:
            names = [conversation_id]
        else:
            async with database.read(timeout_s=60) as c:
                names = await summaries.conversations(c, tenant)
        for name in names:
            await database.write(partial(one, name=name), timeout_s=30)
    finally:
        await database.close()
    return {"changed": bool(names), "conversations": len(names)}


async def _opened(settings: Settings) -> Database:
    database = Database(settings, "pbml-command")
    await database.open()
    return database
