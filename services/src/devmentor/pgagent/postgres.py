"""The PostgreSQL server of this host: how to ask it, set it, stop it, start it."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devmentor.pgagent.settings import Settings
from devmentor.pgagent.sql import Database, Silent, fresh_rows, literal
from devmentor.pgagent.state import write_durably
from devmentor_ha.rules import Rule
from devmentor_ha.textfiles import conninfo, format_auto_conf, parse_auto_conf, parse_control_data, parse_history

log = logging.getLogger(__name__)

APPLICATION = "devmentor pgagent"
CANCEL_LIMIT_S = 20.0

# One statement, so that its parts belong together. LSNs as bytes.
OBSERVE = """
SELECT json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'lsn', (CASE WHEN pg_is_in_recovery()
               THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
               ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::bigint,
  'replay_lsn', (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint,
  'control_timeline', greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                               (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                               (SELECT received_tli FROM pg_stat_wal_receiver)),
  'checkpoint_timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
  'writes_timeline', CASE WHEN NOT pg_is_in_recovery()
                          THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
  'streaming', EXISTS (SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'),
  'streams_from', (SELECT sender_host FROM pg_stat_wal_receiver),
  'primary_conninfo', current_setting('primary_conninfo'),
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'synchronous_standby_names', current_setting('synchronous_standby_names'),
  'promised', current_setting('ha.promised', true),
  'started_at', extract(epoch FROM pg_postmaster_start_time())::float8,
  'replication', (SELECT coalesce(json_agg(json_build_object('name', application_name, 'state', state, 'sync_state',
        sync_state, 'lag_bytes', (CASE WHEN pg_is_in_recovery() THEN NULL
                                       ELSE pg_current_wal_flush_lsn() - flush_lsn END)::bigint,
        'lag_s', extract(epoch FROM coalesce(flush_lag, interval '0'))::float8)), '[]') FROM pg_stat_replication),
  'slots', (SELECT coalesce(json_agg(json_build_object('name', slot_name, 'active', active, 'wal_status', wal_status,
        'type', slot_type, 'synced', synced)), '[]') FROM pg_replication_slots),
  'waiting_commits', (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'),
  'oldest_transaction_s', (SELECT coalesce(extract(epoch FROM now() - min(xact_start)), 0)::float8
        FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()),
  'archive', (SELECT json_build_object('failed_last', coalesce(last_failed_time > coalesce(last_archived_time,
        'epoch'), false), 'archived', archived_count) FROM pg_stat_archiver),
  'has_rules', to_regclass('ha.rule') IS NOT NULL)
"""

RULES = """
SELECT epoch, sub, leader, followers, w, prior_epoch, prior_sub, removed FROM ha.rule
WHERE (epoch, sub) >= (SELECT prior_epoch, prior_sub FROM ha.rule ORDER BY epoch DESC, sub DESC, prior_epoch,
                       prior_sub LIMIT 1)
ORDER BY epoch, sub, leader
"""

SCHEMA = (
    "CREATE SCHEMA IF NOT EXISTS ha",
    "CREATE TABLE IF NOT EXISTS ha.rule (epoch bigint NOT NULL, sub bigint NOT NULL, leader text NOT NULL, "
    "followers text[] NOT NULL, w int NOT NULL, prior_epoch bigint NOT NULL, prior_sub bigint NOT NULL, "
    "removed text[] NOT NULL DEFAULT '{}', written_at timestamptz NOT NULL DEFAULT now(), "
    "PRIMARY KEY (epoch, sub, leader))",
)


class LocalError(Exception):
    """This host's PostgreSQL does not do what it must; the message says what and how to mend it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What systemd says of the server's unit. `waits`: a job for it does; `age_s`: since it was last inactive."""

    starts: bool
    waits: bool
    age_s: float
    down: bool


class LocalPostgres:
    """One server of Debian's cluster layout, run by systemd; the agent runs as its owner."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.data = settings.pg_data_dir
        self.conninfo = conninfo(
            {
                "host": settings.pg_socket_dir,
                "port": settings.pg_port,
                "user": "postgres",
                "dbname": "postgres",
                "application_name": APPLICATION,
                "options": "-c statement_timeout=10s -c lock_timeout=5s",
            }
        )
        self._database = Database(self.conninfo, "PostgreSQL of this host")

    # Asking

    async def rows(self, statement: str, values: tuple[Any, ...] = (), limit_s: float = 2.0) -> list[Any]:
        """Raises Silent."""
        return await self._database.rows(statement, values, limit_s)

    async def value(self, statement: str, limit_s: float = 2.0) -> Any:
        """The single value of a statement. Raises Silent."""
        return (await self.rows(statement, limit_s=limit_s))[0][0]

    def process(self) -> int | None:
        """The postmaster's pid, None where none runs."""
        try:
            with (self.data / "postmaster.pid").open() as handle:
                pid = int(handle.readline())
            with open(f"/proc/{pid}/comm") as handle:  # noqa: PTH123
                return pid if handle.read().strip() == "postgres" else None
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None

    async def observe(self) -> dict[str, Any]:
        """Everything that the status says of the server. Raises Silent."""
        found: dict[str, Any] = await self.value(OBSERVE, limit_s=1.0)
        found["timeline"] = max(found.pop("control_timeline") or 0, self.wal_timeline())
        return found

    def wal_timeline(self) -> int:
        """The highest timeline of which this node has WAL, by its segments' names; 0 where it has none."""
        with contextlib.suppress(OSError):
            names = [path.name for path in (self.data / "pg_wal").iterdir()]
            return max((int(name[:8], 16) for name in names if len(name) == 24), default=0)
        return 0

    async def rules(self) -> list[Rule]:
        """The rule rows of this node's WAL, from the last committed on. Raises Silent."""
        if not await self.value("SELECT to_regclass('ha.rule') IS NOT NULL"):
            return []
        names = ("epoch", "sub", "leader", "followers", "w", "prior_epoch", "prior_sub", "removed")
        return [Rule.from_dict(dict(zip(names, row, strict=True))) for row in await self.rows(RULES)]

    def history(self, timeline: int) -> list[tuple[int, int]]:
        """(timeline, LSN at which it ended) of all timelines before this one. Raises LocalError."""
        if timeline <= 1:
            return []
        path = self.data / "pg_wal" / f"{timeline:08X}.history"
        try:
            return parse_history(path.read_text())
        except OSError as error:
            raise LocalError(f"{path}: {error.strerror}") from error

    async def checkpoint(self, limit_s: float = 300.0) -> None:
        """Over a connection of its own: it may take long, and the server is looked at meanwhile. Raises Silent."""
        await fresh_rows(f"{self.conninfo} options=''", "CHECKPOINT", limit_s, "PostgreSQL of this host")

    async def promote(self, limit_s: float) -> None:
        """End recovery; pg_promote's own wait looks ten times a second only. Raises Silent where it does not end."""
        deadline = time.monotonic() + limit_s
        await self.rows("SELECT pg_promote(false)")
        while await self.value("SELECT pg_is_in_recovery()"):
            if time.monotonic() > deadline:
                raise Silent(f"PostgreSQL of this host was not promoted in {limit_s:g} s")
            await asyncio.sleep(0.01)

    async def have_slots(self, names: list[str]) -> None:
        """Physical slots for the nodes that may follow; rewind and copies bring none. Raises Silent."""
        for name in names:
            await self.rows(
                "SELECT pg_create_physical_replication_slot(%s, false) "
                "WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = %s)",
                (name, name),
            )

    def stale_histories(self, timelines: dict[str, int], known: dict[str, int]) -> list[Path]:
        """History files of timelines that a leader's lineage lacks, or has from another epoch.

        `timelines`: the leader's, `known`: this node's, each timeline -> epoch. A server that has seen such a file
        wants to follow that timeline and no other.
        """
        found = []
        for path in (self.data / "pg_wal").glob("*.history"):
            number = str(int(path.stem, 16))
            if number not in timelines or (number in known and known[number] != timelines[number]):
                found.append(path)
        return found

    # Setting

    async def set(self, settings: Mapping[str, str]) -> None:
        """ALTER SYSTEM, reload, and proof that the postmaster has the settings: a new connection sees them.

        Raises Silent.
        """
        for name, value in settings.items():
            await self.rows(f"ALTER SYSTEM SET {name} = {literal(value)}")
        await self._reload(settings)

    async def reset(self, names: list[str]) -> None:
        """Back to what the configuration files say."""
        for name in names:
            await self.rows(f"ALTER SYSTEM RESET {name}")
        await self.rows("SELECT pg_reload_conf()")

    async def _reload(self, settings: Mapping[str, str]) -> None:
        names = list(settings)
        wanted = [settings[name] for name in names]
        shown = ", ".join(f"current_setting({literal(name)}, true)" for name in names)
        deadline = time.monotonic() + 3
        await self.rows("SELECT pg_reload_conf()")
        while True:
            seen = (await fresh_rows(self.conninfo, f"SELECT {shown}", 2.0, "PostgreSQL of this host"))[0]
            if [_unit_free(text) for text in seen] == [_unit_free(text) for text in wanted]:
                return
            if time.monotonic() > deadline:
                raise Silent(f"PostgreSQL of this host does not take up {names}: has {list(seen)}")
            await asyncio.sleep(0.01)

    def edit_auto_conf(self, settings: Mapping[str, str | None]) -> None:
        """The same for a stopped server; None removes a setting."""
        path = self.data / "postgresql.auto.conf"
        now: dict[str, str] = parse_auto_conf(path.read_text()) if path.exists() else {}
        for name, value in settings.items():
            if value is None:
                now.pop(name, None)
            else:
                now[name] = value
        write_durably(path, format_auto_conf(now), 0o600)

    def reload(self) -> None:
        """By signal: for a server that lets nobody in."""
        pid = self.process()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def auto_conf(self) -> dict[str, str]:
        """The settings of postgresql.auto.conf."""
        path = self.data / "postgresql.auto.conf"
        return parse_auto_conf(path.read_text()) if path.exists() else {}

    def become_standby(self) -> None:
        """The next start is one of a follower."""
        write_durably(self.data / "standby.signal", "", 0o600)

    @property
    def is_standby_data(self) -> bool:
        return (self.data / "standby.signal").exists()

    @property
    def has_data(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    # Stopping and starting

    async def stop(self, limit_s: float, immediate_after_s: float) -> None:
        """A fast shutdown; an immediate one where that takes too long. Raises LocalError."""
        pid = self.process()
        self._database.drop()
        if pid is None:
            return
        for number, seconds in ((signal.SIGINT, immediate_after_s), (signal.SIGQUIT, limit_s)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self.process() is None:
                    return
                await asyncio.sleep(0.02)
        raise LocalError(f"PostgreSQL (pid {pid}) does not stop; look at its log, then kill -9 it")

    async def halt(self, limit_s: float, immediate_after_s: float) -> None:
        """Stop it, and whatever would start it: of a start under way the guard may have looked at the old data.

        Raises LocalError.
        """
        await self.unit()  # where systemd does not answer, nothing is stopped
        await self.stop(limit_s, immediate_after_s)
        unit = await self.unit()
        if unit.starts or unit.waits:
            await self.cancel_start()

    async def unit(self) -> Unit:
        """Raises LocalError."""
        names = ("ActiveState", "Job", "InactiveExitTimestampMonotonic")
        command = ["/usr/bin/systemctl", "show", f"--property={','.join(names)}", self.settings.pg_unit]
        code, output = await self.run(command, 10)
        shown = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        try:
            state, job, left_us = (shown[name] for name in names)
            age_s = time.monotonic() - int(left_us) / 1e6
        except (KeyError, ValueError):
            code = code or 1
        if code != 0:
            raise LocalError(f"systemctl show {self.settings.pg_unit} failed with {code}: {output[-300:]}")
        return Unit(state == "activating", job not in ("", "0"), age_s, state in ("inactive", "failed"))

    async def cancel_start(self) -> None:
        """End a start under way, and the server that came of it, and wait for that. Raises LocalError."""
        await self._systemctl("stop", "--no-block")
        deadline = time.monotonic() + CANCEL_LIMIT_S
        while not (unit := await self.unit()).down or unit.waits:
            await self.stop(limit_s=5, immediate_after_s=5)  # systemd's own signal lets it wait for its clients
            if time.monotonic() > deadline:
                raise LocalError(f"{self.settings.pg_unit} does not end its start in {CANCEL_LIMIT_S:g} s")
            await asyncio.sleep(0.05)

    async def start(self) -> None:
        """Ask systemd for it; the start guard has the last word. Does not wait. Raises LocalError."""
        with contextlib.suppress(LocalError):
            await self._systemctl("reset-failed")
        await self._systemctl("start", "--no-block")

    async def _systemctl(self, *words: str) -> None:
        """As the sudoers file has it, word for word. Raises LocalError."""
        code, output = await self.run(["sudo", "-n", "/usr/bin/systemctl", *words, self.settings.pg_unit], 20)
        if code != 0:
            raise LocalError(f"systemctl {words[0]} {self.settings.pg_unit} failed with {code}: {output[-300:]}")

    async def run(self, command: list[str], limit_s: float) -> tuple[int, str]:
        """A program's exit status and output; -9 and what it said where the limit ran out."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "HOME": "/var/lib/postgresql"},
        )
        try:
            async with asyncio.timeout(limit_s):
                output, _ = await process.communicate()
        except (TimeoutError, asyncio.CancelledError) as error:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # sudo is root's
                process.kill()
                await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise
            return -9, f"{command[0]} did not end in {limit_s:g} s"
        return process.returncode or 0, output.decode(errors="replace").strip()

    async def control(self) -> dict[str, str]:
        """pg_controldata of a stopped server. Raises LocalError."""
        code, output = await self.run([str(self.settings.pg_bin_dir / "pg_controldata"), str(self.data)], 10)
        if code != 0:
            raise LocalError(f"pg_controldata {self.data} failed with {code}: {output[-300:]}")
        return parse_control_data(output)


def _unit_free(text: str | None) -> str:
    """`0` and `0ms` are the same, `100ms` is as it is."""
    text = text or ""
    return text.removesuffix("ms") if text.removesuffix("ms").isdigit() else text
