"""verify's checks of the database tier: PostgreSQL and PgBouncer."""

from __future__ import annotations

import collections.abc as c
import json
import re
import time
from typing import Any

from ..devmentor_ha.agents import ENV_FILE, Agents, HaError
from ..devmentor_ha.report import examine, summary
from ..devmentor_ha.verdict import HEALTHY, UNKNOWN, Verdict
from .checks_base import Failed, Plan, Recorder, Unanswered, poll
from .checks_client import run_command

MAX_LAG_BYTES = 16 * 1024 * 1024
MAX_LAG_SECONDS = 10.0
# Five archive_timeout: a finished segment that waits longer is not merely in line.
MAX_ARCHIVE_WAIT_SECONDS = 300
# `status.code` of pgbackrest's info where the repository could be read; 2 is "no valid backups", which has its own row.
READ_CODES = (0, 2)

_STATE_SQL = """
select json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'timeline', (select timeline_id from pg_control_checkpoint()),
  'synchronous', current_setting('synchronous_standby_names'),
  'archive_mode', current_setting('archive_mode'),
  'pending_restart', (select coalesce(json_agg(name), '[]') from pg_settings where pending_restart),
  'receiver', (select status from pg_stat_wal_receiver),
  'archived', (select archived_count from pg_stat_archiver),
  'archive_failures', (select failed_count from pg_stat_archiver),
  'archive_age', (select extract(epoch from now() - last_archived_time)::int from pg_stat_archiver),
  'archive_waits', (select coalesce(extract(epoch from now() - min(modification)), 0)::int
                    from pg_ls_archive_statusdir() where name like '%.ready'),
  'last_archived_wal', (select last_archived_wal from pg_stat_archiver),
  'archive_broken', (select coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)
                     from pg_stat_archiver),
  'last_failed_wal', (select last_failed_wal from pg_stat_archiver))
"""
_REPLICAS_SQL = """
select coalesce(json_agg(json_build_object(
  'address', host(client_addr), 'name', application_name, 'state', state, 'sync', sync_state,
  'lag_bytes', pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint,
  'lag_seconds', extract(epoch from coalesce(replay_lag, interval '0'))::float)), '[]')
from pg_stat_replication
"""
# The schema is ours alone and outside of the platform's database; what older runs wrote is swept here.
_WRITE_SQL = """
set client_min_messages = warning;
set statement_timeout = '10s';
create schema if not exists devmentor_verify;
create table if not exists devmentor_verify.canary
  (run text primary key, host text not null, written_at timestamptz not null default now());
delete from devmentor_verify.canary where written_at < now() - interval '1 hour';
insert into devmentor_verify.canary (run, host) values (:'run', :'host');
"""
# From a replica: the primary that it follows, by the credentials and the certificate that it follows it with. That role
# may write no row; a message is WAL of a transaction, whose commit waits for the quorum as any other.
_COMMIT_SQL = r"""
select current_setting('primary_conninfo') as upstream \gset
\set upstream :upstream ' dbname=postgres application_name=devmentor_verify connect_timeout=5'
\connect -reuse-previous=off :upstream
set statement_timeout = '10s';
select pg_logical_emit_message(true, 'devmentor_verify', :'run') \g /dev/null
select pg_current_wal_lsn();
"""
_READ_SQL = "select host || ' ' || to_char(written_at, 'HH24:MI:SS') from devmentor_verify.canary where run = :'run'"


def psql(plan: Plan, sql: str, *, port: int = 0, timeout: float = 30, **variables: str) -> str:
    """Run SQL as the database's owner over the local socket; port: another than the plan's, timeout in seconds."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
    command += ["-p", str(port or plan.ports["postgres"])]
    for name, value in variables.items():
        command += ["-v", f"{name}={value}"]
    return run_command(command, stdin=sql, timeout=timeout).strip()


def read_replicas(plan: Plan, port: int = 0, timeout: float = 30) -> list[dict[str, Any]]:
    """The replicas as this primary sees them: address, name, state, sync, lag_bytes, lag_seconds."""
    return list(json.loads(psql(plan, _REPLICAS_SQL, port=port, timeout=timeout)))


def judge_replica(replica: c.Mapping[str, Any] | None, max_lag_bytes: int = MAX_LAG_BYTES) -> str:
    """A replica as its primary sees it."""
    if replica is None:
        raise Failed("does not stream from the primary")
    evidence = "{state}, {sync}, lag {lag_bytes} B, {lag_seconds:.2f} s".format(**replica)
    if replica["state"] != "streaming" or replica["lag_bytes"] is None:
        raise Failed(evidence)
    if replica["lag_bytes"] > max_lag_bytes or replica["lag_seconds"] > MAX_LAG_SECONDS:
        raise Failed(evidence)
    return evidence


def judge_synchronous(setting: str, replicas: list[dict[str, Any]]) -> str:
    """Enough replicas count for the quorum that the primary waits for."""
    wanted = re.match(r"(?:ANY|FIRST)\s+(\d+)", setting, re.IGNORECASE)
    if not wanted:
        raise Failed(f"synchronous_standby_names is {setting!r}: commits wait for no replica")
    counted = [r for r in replicas if r["sync"] in ("quorum", "sync") and r["state"] == "streaming"]
    evidence = f"{setting}: {len(counted)} of {len(replicas)} replicas count"
    if len(counted) < int(wanted.group(1)):
        raise Failed(evidence)
    return evidence


def judge_archiver(state: c.Mapping[str, Any]) -> str:
    """What a primary says of its archiver: the last attempt succeeded, and no finished segment waits for long."""
    if state["archive_mode"] == "off":
        raise Failed("archive_mode is off")
    failures = f", {state['archive_failures']} failures before" if state["archive_failures"] else ""
    if state["archive_broken"]:
        raise Failed(f"the last attempt failed: {state['last_failed_wal']}{failures}")
    if not state["archived"]:
        raise Failed("nothing was archived yet")
    if state["archive_waits"] > MAX_ARCHIVE_WAIT_SECONDS:
        raise Failed(f"a segment has waited for {state['archive_waits']} s; {MAX_ARCHIVE_WAIT_SECONDS} are the limit")
    return f"{state['archived']} segments archived, the last {state['archive_age']} s ago{failures}"


def judge_repository(stanzas: list[dict[str, Any]], archived: str | None) -> str:
    """What `pgbackrest info` read from the object store. archived: what the primary's archiver last called done."""
    if not stanzas:
        raise Failed("answers, and has no stanza")
    for stanza in stanzas:
        if stanza["status"]["code"] not in READ_CODES:
            raise Failed("; ".join(str(repository["status"]["message"]) for repository in stanza["repo"]))
    # The last entry of a stanza is that of its present database.
    newest = max(str(stanza["archive"][-1]["max"] or "") if stanza["archive"] else "" for stanza in stanzas)
    if not newest:
        raise Failed("answers, and has no WAL")
    # History and backup files are archived too, and are no segments.
    if archived and re.fullmatch("[0-9A-F]{24}", archived) and archived > newest:
        raise Failed(f"{archived} counts as archived and is not there; the last is {newest}")
    return f"answers, WAL up to {newest}"


def judge_failover(verdict: Verdict) -> str:
    """All agents agree on who leads, every node is in the rule, and the poolers follow: one node may be lost."""
    said = " ".join(map(str, verdict.reasons))
    if verdict.state == UNKNOWN:
        raise Unanswered(said)
    if verdict.state != HEALTHY:
        raise Failed(f"{verdict.state}: {said}")
    poolers = f", {len(verdict.poolers)} poolers follow" if verdict.poolers else ""
    return f"{summary(verdict.as_dict())}{poolers}"


def check_postgres(plan: Plan, record: Recorder) -> None:
    state: dict[str, Any] = {}
    replicas: list[dict[str, Any]] = []
    stanzas: list[dict[str, Any]] = []

    def read_state() -> None:
        state.update(json.loads(psql(plan, _STATE_SQL)))

    def role() -> str:
        read_state()
        record.facts["postgres_role"] = "replica" if state["in_recovery"] else "primary"
        if state["in_recovery"] and state["receiver"] != "streaming":
            raise Failed(f"replica whose WAL receiver is {state['receiver'] or 'not running'}")
        return f"{record.facts['postgres_role']}, timeline {state['timeline']}"

    def failover() -> str:
        try:
            agents = Agents.of_host(ENV_FILE)
        except HaError as error:
            raise Unanswered(str(error)) from error
        away = {name for hosts in (plan.absent.get("postgres", {}), plan.absent.get("pgbouncer", {})) for name in hosts}
        return judge_failover(examine(agents, away))

    def settings() -> str:
        if state["pending_restart"]:
            raise Failed(f"wait for a restart: {', '.join(state['pending_restart'])}")
        return "no setting waits for a restart"

    def archiver() -> str:
        read_state()
        return judge_archiver(state)

    def archive() -> str:
        # A server that has just started has archived nothing: it gets something to archive.
        if state["archive_mode"] != "off" and not state["archived"]:
            psql(plan, "select pg_switch_wal()")
        return poll(archiver, plan.patience)

    def repository() -> str:
        # As the archive's user, so with the credentials, the CA and the passphrase that archiving and restoring take.
        command = ["runuser", "-u", "postgres", "--", "pgbackrest", "--io-timeout=5", "--output=json", "info"]
        stanzas[:] = json.loads(run_command(command))
        return judge_repository(stanzas, None if state["in_recovery"] else state["last_archived_wal"])

    def synchronous() -> str:
        replicas[:] = read_replicas(plan)
        return judge_synchronous(state["synchronous"], replicas)

    def write() -> str:
        began = time.monotonic()
        psql(plan, _WRITE_SQL, run=plan.run, host=plan.host)
        return f"acknowledged in {(time.monotonic() - began) * 1000:.0f} ms"

    def read() -> str:
        found = psql(plan, _READ_SQL, run=plan.run)
        if not found:
            raise Failed("the row of this run has not arrived")
        return f"written on {found}"

    def backup() -> str:
        backups = [b for stanza in stanzas for b in stanza.get("backup", []) if not b.get("error")]
        if not backups:
            raise Failed("there is no backup")
        age = (time.time() - backups[-1]["timestamp"]["stop"]) / 3600
        return f"{len(backups)} backups, the last {backups[-1]['type']}, {age:.1f} h old"

    role_known = record.check("role", role)
    record.check("failover", lambda: poll(failover, plan.patience))
    if not role_known and not state:
        return
    record.check("settings", settings)
    if state["in_recovery"]:
        record.check("object store", repository)
        if plan.replicated_row:
            record.check("row from the primary", lambda: poll(read, plan.patience))
        return
    # First the row: the replicas are waiting for it.
    record.check("row written", write)
    record.check("archiving", archive)
    if record.check("object store", repository):
        record.check("backup", backup)
    if len(plan.peers["postgres"]) > 1 and record.check("synchronous commit", lambda: poll(synchronous, 10)):
        seen = {replica["address"]: replica for replica in replicas}
        for name, address in plan.peers["postgres"].items():
            if name != plan.host:
                record.check(f"replica {name}", lambda a=address: judge_replica(seen.get(a)))  # type: ignore[misc]


def check_commit(plan: Plan, record: Recorder) -> None:
    """On a replica: a commit that is made on its primary from here arrives here.

    It shows of one host what verify's row shows of all.
    """

    def arrives() -> str:
        if psql(plan, "select pg_is_in_recovery()") != "t":
            return "this is the primary; it wrote the row"
        began = time.monotonic()
        lsn = psql(plan, _COMMIT_SQL, run=plan.run)

        def replayed() -> str:
            if psql(plan, "select pg_last_wal_replay_lsn() >= :'lsn'::pg_lsn", lsn=lsn) != "t":
                raise Failed(f"the commit before {lsn} has not arrived")
            return f"a commit on the primary, before {lsn}, replayed here in {time.monotonic() - began:.2f} s"

        return poll(replayed, plan.patience, 0.2)

    record.check("commit from the primary", arrives)


def check_pgbouncer(plan: Plan, record: Recorder) -> None:
    def entry(name: str, primary: bool | None) -> str:
        env = {
            "PGHOST": plan.address,
            "PGPORT": str(plan.ports["pgbouncer"]),
            "PGUSER": "pbml",
            "PGPASSWORD": plan.secrets["pbml_database_password"],
            "PGDATABASE": name,
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": plan.tls["ca"],
            "PGCONNECT_TIMEOUT": "10",
        }
        sql = "select pg_is_in_recovery(), host(inet_server_addr())"
        recovery, _, server = run_command(["psql", "-XAtq"], stdin=sql, env=env).strip().partition("|")
        kind = "replica" if recovery == "t" else "primary"
        names = {address: host for host, address in plan.peers.get("postgres", {}).items()}
        evidence = f"select over TLS answered by {kind} {names.get(server, server)}"
        if primary is not None and primary != (kind == "primary"):
            raise Failed(evidence)
        return evidence

    record.check("devmentor", lambda: entry("devmentor", True))
    record.check("devmentor_ro", lambda: entry("devmentor_ro", False if len(plan.peers["postgres"]) > 1 else None))
    record.check("devmentor_session", lambda: entry("devmentor_session", True))
