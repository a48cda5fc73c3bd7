"""Taking away a node's part in acknowledgements, durably (docs/postgres-ha-protocol.md, "Covered")."""

import asyncio
import contextlib
import os
import signal
import time
from typing import Any

from devmentor.pgagent.postgres import APPLICATION, LocalPostgres
from devmentor.pgagent.sql import Silent
from devmentor_ha.election import FOLLOWER, LEADER
from devmentor_ha.rules import NOBODY, Need

# Set by the fence, back to the configuration files' values once the node follows or leads.
WHILE_FENCED = {
    "max_standby_streaming_delay": "0",
    "max_standby_archive_delay": "0",
    "wal_retrieve_retry_interval": "100ms",
}
IMPATIENCE_S = 0.2  # readers that hold replay up for longer are ended

_ENDS_READERS = f"""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND application_name <> '{APPLICATION}'
"""  # noqa: S608


async def fence(postgres: LocalPostgres, epoch: int, controller: str, limit_s: float = 5.0) -> dict[str, Any]:
    """Fence the running server; the promise is durable already. Answers mode, LSN (bytes) and timeline.

    Raises Silent where the server does not answer in time: then nothing may be concluded from this node.
    """
    promised = f"{epoch} {controller}"
    try:
        async with asyncio.timeout(limit_s):
            if await postgres.value("SELECT pg_is_in_recovery()", limit_s=1.0):
                await _fence_follower(postgres, promised)
                mode = FOLLOWER
            else:
                await _fence_leader(postgres, promised)
                mode = LEADER
            found = await postgres.observe()
    except TimeoutError:
        raise Silent(f"PostgreSQL of this host could not be fenced in {limit_s:g} s") from None
    return {"mode": mode, "lsn": found["lsn"], "timeline": found["timeline"]}


async def _fence_follower(postgres: LocalPostgres, promised: str) -> None:
    await postgres.set({"ha.promised": promised, "primary_conninfo": "", "restore_command": "", **WHILE_FENCED})
    # The postmaster has the settings. A confirmed pause proves that the startup process has read its signals since.
    await postgres.rows("SELECT pg_wal_replay_pause()")
    try:
        await _until(postgres, "SELECT pg_get_wal_replay_pause_state() = 'paused'")
        while (pid := await _receiver(postgres)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            await asyncio.sleep(0.005)
    finally:
        await postgres.rows("SELECT pg_wal_replay_resume()")
    await _until(postgres, "SELECT pg_last_wal_replay_lsn() >= coalesce(pg_last_wal_receive_lsn(), '0/0')")


async def _receiver(postgres: LocalPostgres) -> int | None:
    rows = await postgres.rows("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'")
    return int(rows[0][0]) if rows else None


async def _until(postgres: LocalPostgres, condition: str, ends_readers: bool = True) -> None:
    began = time.monotonic()
    while not await postgres.value(condition):
        if ends_readers and time.monotonic() - began > IMPATIENCE_S:
            await postgres.rows(_ENDS_READERS)
        await asyncio.sleep(0.01)


async def _fence_leader(postgres: LocalPostgres, promised: str) -> None:
    names = Need(1, frozenset({NOBODY})).setting
    await postgres.set({"ha.promised": promised, "synchronous_standby_names": names})
    # Senders started before the reload may still release commits; those forked after it have the new setting.
    pids = [pid for (pid,) in await postgres.rows("SELECT pid FROM pg_stat_replication")]
    await postgres.rows("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))
    array = "{" + ",".join(map(str, pids)) + "}"
    await _until(postgres, f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY('{array}'))", False)  # noqa: S608
