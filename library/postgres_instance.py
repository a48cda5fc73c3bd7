#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: postgres_instance
short_description: Discover, create, copy and start one PostgreSQL server
description:
  - C(state=discovered) reports what a host holds and runs, and changes nothing. The reports of all hosts together
    decide who the primary is (module_utils/devmentor/postgres_topology.py).
  - C(state=present) carries out that decision on this host. A new data directory is made beside its place and renamed
    into it when it is complete and on disk, so that an interrupted run leaves nothing that looks like data.
  - A running server is reloaded where a configuration file is newer than its last load, and never restarted; settings
    and files that wait for a restart are reported.
options:
  state: {description: What to do., type: str, choices: [discovered, present], default: present}
  version: {description: Major version., type: int, default: 17}
  cluster: {description: Debian's cluster name., type: str, default: main}
  port: {description: Port., type: int, default: 5432}
  action:
    description: The plan's word for this host.
    type: str
    choices: [keep, initdb, clone, start]
    default: keep
  primary_conninfo:
    description: Connection parameters of the primary, for a clone; also seeds C(primary_conninfo).
    type: dict
    default: {}
  slot: {description: This host's physical slot on the primary., type: str}
  slots:
    description: Physical slots to have here, one for each other host. A slot that lost its WAL is made again.
    type: list
    elements: str
    default: []
  seed:
    description: Settings written to C(postgresql.auto.conf) of a new data directory, and never after that.
    type: dict
    default: {}
  initdb_options: {description: Further options of initdb., type: list, elements: str, default: []}
  reload_on: {description: Files that a reload reads., type: list, elements: path, default: []}
  restart_on:
    description: Files that only a restart reads; reported when newer.
    type: list
    elements: path
    default: []
  timeout: {description: Seconds to wait for a server that starts and for a replica to stream., type: int, default: 120}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: See what this host holds
  postgres_instance:
    state: discovered
  register: discovered

- name: Copy the primary and follow it
  postgres_instance:
    action: clone
    primary_conninfo: {host: 192.0.2.11, user: replicator, passfile: /etc/devmentor/postgres/replication.pgpass}
    slot: db2
"""

RETURN = r"""
instance:
  description: What the host holds and runs, before any change.
  returned: success
  type: dict
  contains:
    data: {description: "absent, pristine, present or unknown.", type: str, returned: always}
    running: {description: Whether a server process runs., type: bool, returned: always}
    standby: {description: Whether it is (or would start as) a replica., type: bool, returned: always}
    system_identifier: {description: From the control file., type: str, returned: always}
    timeline: {description: The highest timeline seen., type: int, returned: always}
    error: {description: Why something is unknown., type: str, returned: always}
    seeded: {description: Names in postgresql.auto.conf., type: list, elements: str, returned: always}
actions:
  description: What was (or would be) done, with the reason.
  returned: success
  type: list
  elements: str
pending_restart:
  description: Settings and files that wait for a restart, which this module never does.
  returned: success
  type: list
  elements: str
"""

import contextlib
import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.postgres import (
    MINIMUM_VERSION,
    PostgresError,
    conninfo,
    format_auto_conf,
    is_pristine,
    parse_auto_conf,
    parse_control_data,
    replica_auto_conf,
)
from ansible.module_utils.devmentor.units import changed_at

try:
    import psycopg2
except ImportError:  # before the packages are there
    psycopg2 = None

SYSTEM_USER = "postgres"
SOCKET_DIR = "/var/run/postgresql"
SIGNAL_FILES = ("standby.signal", "recovery.signal")
LOCK_TIMEOUT_S = 3600
SLOT_BUSY_TIMEOUT_S = 60
PR_SET_PDEATHSIG = 1

STATE = """
SELECT pg_is_in_recovery(),
       (SELECT system_identifier::text FROM pg_control_system()),
       greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                (SELECT received_tli FROM pg_stat_wal_receiver),
                CASE WHEN NOT pg_is_in_recovery()
                     THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END),
       current_setting('server_version_num')::int
"""


class Instance:
    def __init__(self, module):
        self.module = module
        self.params = module.params
        version, cluster = self.params["version"], self.params["cluster"]
        self.name = f"{version}-{cluster}"
        self.unit = f"postgresql@{self.name}.service"
        self.base = f"/var/lib/postgresql/{version}"
        self.data = f"{self.base}/{cluster}"
        self.staging = f"{self.data}.incoming"
        self.replaced = f"{self.data}.replaced"
        self.bin = f"/usr/lib/postgresql/{version}/bin"
        self.log = f"/var/log/postgresql/postgresql-{self.name}.log"
        self.backup_log = f"/var/log/postgresql/basebackup-{self.name}.log"
        self.actions = []
        self.pending = []
        self.lock = None

    # discovery ---------------------------------------------------------
    def report(self):
        """What this host holds and runs. Anything that cannot be read makes `data` unknown, with the error."""
        report = {
            "data": "unknown", "running": False, "standby": None, "system_identifier": "", "timeline": 0,
            "error": "", "seeded": [],
        }
        try:
            self.fill(report)
        except (PostgresError, OSError) as error:
            report.update(data="unknown", error=str(error))
        return report

    def fill(self, report):
        if not os.path.isdir(self.data) or not os.listdir(self.data):
            report["data"] = "absent"
            return
        version_file = os.path.join(self.data, "PG_VERSION")
        if not os.path.exists(version_file):
            raise PostgresError(f"{self.data} is not empty and holds no database (no PG_VERSION). Move it away.")
        with open(version_file) as handle:
            major = handle.read().strip()
        if major != str(self.params["version"]):
            raise PostgresError(f"{self.data} is of PostgreSQL {major}, not {self.params['version']}. Upgrade it.")
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.data, "postgresql.auto.conf")) as handle:
            report["seeded"] = sorted(parse_auto_conf(handle.read()))
        report["running"] = self.process() is not None
        if report["running"]:
            with self.wait_connection() as connection:
                standby, identifier, timeline, number = self.row(connection, STATE)
            if (number // 10000, number % 10000) < MINIMUM_VERSION:
                wanted = ".".join(str(part) for part in MINIMUM_VERSION)
                raise PostgresError(f"it runs version {number}, at least {wanted} is needed. Update the package.")
            report.update(data="present", standby=standby, system_identifier=identifier, timeline=timeline)
            return
        control = self.control()
        report.update(
            data="pristine" if is_pristine(control) else "present",
            standby=any(os.path.exists(os.path.join(self.data, name)) for name in SIGNAL_FILES),
            system_identifier=control.get("Database system identifier", ""),
            timeline=max(
                int(control.get("Latest checkpoint's TimeLineID", "0")),
                int(control.get("Min recovery ending loc's timeline", "0")),
            ),
        )

    def control(self):
        done = self.as_user([f"{self.bin}/pg_controldata", self.data], check=True)
        return parse_control_data(done.stdout)

    def process(self):
        """The postmaster's pid, None where none runs. A stale pid file, or one of another program's pid, is none."""
        try:
            with open(os.path.join(self.data, "postmaster.pid")) as handle:
                pid = int(handle.readline())
            with open(f"/proc/{pid}/comm") as handle:
                return pid if handle.read().strip() == "postgres" else None
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None

    # connections -------------------------------------------------------
    @contextlib.contextmanager
    def connection(self):
        if psycopg2 is None:
            raise PostgresError("python3-psycopg2 is not installed, but a server runs. Install it.")
        entry, before = pwd.getpwnam(SYSTEM_USER), (os.geteuid(), os.getegid())
        os.setegid(entry.pw_gid)
        os.seteuid(entry.pw_uid)  # peer authentication looks at the effective user at connect time
        try:
            connection = psycopg2.connect(
                host=SOCKET_DIR, port=self.params["port"], dbname="postgres", user=SYSTEM_USER, connect_timeout=3,
                options="-c statement_timeout=15s", application_name="ansible postgres_instance",
            )
        finally:
            os.seteuid(before[0])
            os.setegid(before[1])
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def wait_connection(self):
        deadline = time.monotonic() + self.params["timeout"]
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    connection = stack.enter_context(self.connection())
                    break
                except psycopg2.OperationalError as error:
                    reason = str(error).strip().splitlines()[-1]
                if self.process() is None:
                    raise PostgresError(f"the server went away while it was asked ({reason}).\n{self.log_tail()}")
                if time.monotonic() > deadline:
                    raise PostgresError(
                        f"the server runs but does not answer after {self.params['timeout']} s ({reason}).\n"
                        f"{self.log_tail()}"
                    )
                time.sleep(0.25)
            yield connection

    @staticmethod
    def rows(connection, text, values=()):
        with connection.cursor() as cursor:
            cursor.execute(text, values)
            return cursor.fetchall()

    def row(self, connection, text, values=()):
        return self.rows(connection, text, values)[0]

    # commands ----------------------------------------------------------
    def as_user(self, command, check=False, **more):
        entry = pwd.getpwnam(SYSTEM_USER)

        def die_with_parent():
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        done = subprocess.run(
            command, user=entry.pw_uid, group=entry.pw_gid, cwd="/",
            extra_groups=os.getgrouplist(SYSTEM_USER, entry.pw_gid), umask=0o077,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": entry.pw_dir}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=more.pop("stderr", subprocess.PIPE), preexec_fn=die_with_parent,
            pass_fds=[self.lock] if self.lock is not None else [], check=False, **more,
        )
        if check and done.returncode != 0:
            raise PostgresError(f"{command[0]} failed with {done.returncode}: {(done.stderr or done.stdout).strip()}")
        return done

    def systemctl(self, *words):
        code, out, err = self.module.run_command(["systemctl", *words])
        if code != 0:
            reason = (err or out).strip()
            raise PostgresError(f"systemctl {' '.join(words)} failed with {code}: {reason}\n{self.log_tail()}")
        return out.strip()

    def log_tail(self):
        try:
            with open(self.log, "rb") as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - 3000))
                lines = handle.read().decode("utf-8", "replace").splitlines()[-12:]
        except OSError:
            return f"({self.log} has nothing)"
        return f"The last lines of {self.log}:\n" + "\n".join(lines)

    @contextlib.contextmanager
    def locked(self):
        """One run at a time on this host; a child that outlives an interrupted run holds the lock until it ends."""
        os.makedirs(self.base, exist_ok=True)
        self.lock = os.open(f"{self.base}/.{self.params['cluster']}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        try:
            while True:
                try:
                    fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise PostgresError(
                            f"another run has been making {self.data} for {LOCK_TIMEOUT_S} s; see {self.backup_log}."
                        ) from None
                    time.sleep(1)
            yield
        finally:
            os.close(self.lock)
            self.lock = None

    # a new data directory ----------------------------------------------
    def create(self, action):
        with self.locked():
            report = self.report()  # again, under the lock: another run may have been here
            if report["data"] == "unknown":
                raise PostgresError(report["error"])
            if report["data"] == "present":
                return
            for leftover in (self.staging, self.replaced):
                if os.path.isdir(leftover):
                    self.actions.append(f"removed {leftover}: left by an interrupted run")
                    shutil.rmtree(leftover)
            if action == "initdb":
                self.initdb()
            else:
                self.clone()
            self.swap()

    def initdb(self):
        self.actions.append(f"initdb {self.data}: no host has data")
        self.as_user([f"{self.bin}/initdb", "--pgdata", self.staging, *self.params["initdb_options"]], check=True)
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):  # Debian's are in /etc/postgresql
            os.unlink(os.path.join(self.staging, name))
        self.write("postgresql.auto.conf", format_auto_conf(self.params["seed"]))

    def clone(self):
        source = self.params["primary_conninfo"]
        self.actions.append(f"pg_basebackup from {source.get('host')}: no data here")
        command = [
            f"{self.bin}/pg_basebackup", "--pgdata", self.staging, "--dbname", conninfo(source), "--slot",
            self.params["slot"], "--wal-method", "stream", "--checkpoint", "fast", "--progress", "--no-password",
        ]
        deadline = time.monotonic() + SLOT_BUSY_TIMEOUT_S
        while True:
            with open(self.backup_log, "w") as progress:
                done = self.as_user(command, stderr=progress)
            if done.returncode == 0:
                break
            with open(self.backup_log) as handle:
                text = handle.read()
            # The sender of an interrupted copy holds the slot until the primary notices.
            if "is active for PID" not in text or time.monotonic() > deadline:
                raise PostgresError(
                    f"pg_basebackup from {source.get('host')} failed with {done.returncode}: {text.strip()[-1500:]}"
                )
            shutil.rmtree(self.staging, ignore_errors=True)
            time.sleep(1)
        with open(os.path.join(self.staging, "postgresql.auto.conf")) as handle:
            copied = handle.read()
        seed = {**self.params["seed"], "primary_conninfo": conninfo(source)}
        self.write("postgresql.auto.conf", replica_auto_conf(copied, seed))
        self.write("standby.signal", "")

    def write(self, name, content):
        path, entry = os.path.join(self.staging, name), pwd.getpwnam(SYSTEM_USER)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chown(path, entry.pw_uid, entry.pw_gid)
        sync_directory(self.staging)

    def swap(self):
        if os.path.isdir(self.data):
            if os.listdir(self.data):
                self.actions.append(f"replaced the empty cluster that the package made in {self.data}")
            os.rename(self.data, self.replaced)
        os.rename(self.staging, self.data)
        sync_directory(self.base)
        shutil.rmtree(self.replaced, ignore_errors=True)

    # a running server ---------------------------------------------------
    def start(self, why):
        self.actions.append(f"start {self.unit}: {why}")
        self.systemctl("daemon-reload")
        self.module.run_command(["systemctl", "reset-failed", self.unit])
        self.systemctl("start", self.unit)
        if self.process() is None:
            raise PostgresError(f"{self.unit} did not start.\n{self.log_tail()}")
        with self.wait_connection() as connection:
            if self.row(connection, "SELECT pg_is_in_recovery() AND current_setting('primary_conninfo') <> ''")[0]:
                self.wait_streaming(connection)

    def wait_streaming(self, connection):
        deadline = time.monotonic() + self.params["timeout"]
        while not self.rows(connection, "SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'"):
            if time.monotonic() > deadline:
                raise PostgresError(f"the replica does not stream after {self.params['timeout']} s.\n{self.log_tail()}")
            time.sleep(0.25)

    def tend(self, connection):
        """What a running server may need: a reload, slots; and what it waits for."""
        loaded, started = self.row(
            connection,
            "SELECT extract(epoch FROM pg_conf_load_time())::float8, "
            "extract(epoch FROM pg_postmaster_start_time())::float8",
        )
        newer = [path for path in self.params["reload_on"] if changed_at(path) > loaded]
        if newer:
            self.actions.append(f"reload: newer than the last load: {', '.join(newer)}")
            if not self.module.check_mode:
                self.reload(connection, loaded)
        self.refuse_bad_files(connection)
        self.slots(connection)
        self.pending = [path for path in self.params["restart_on"] if changed_at(path) > started]
        self.pending += [
            row[0] for row in self.rows(connection, "SELECT name FROM pg_settings WHERE pending_restart ORDER BY 1")
        ]

    def reload(self, connection, loaded):
        self.row(connection, "SELECT pg_reload_conf()")
        deadline = time.monotonic() + 10
        while self.row(connection, "SELECT extract(epoch FROM pg_conf_load_time())::float8")[0] <= loaded:
            if time.monotonic() > deadline:
                raise PostgresError(f"the server did not reload its configuration.\n{self.log_tail()}")
            time.sleep(0.05)

    def refuse_bad_files(self, connection):
        if self.module.check_mode:
            return
        bad = self.rows(
            connection,
            "SELECT sourcefile, sourceline, error FROM pg_file_settings "
            "WHERE error IS NOT NULL AND error <> 'setting could not be applied' "
            "UNION ALL SELECT file_name, line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL "
            "UNION ALL SELECT file_name, line_number, error FROM pg_ident_file_mappings WHERE error IS NOT NULL",
        )
        if bad:
            listed = "; ".join(f"{path} line {line}: {error}" for path, line, error in bad)
            raise PostgresError(f"the server refuses its configuration and keeps the one before: {listed}")

    def slots(self, connection):
        have = {
            name: (active, status)
            for name, active, status in self.rows(
                connection,
                "SELECT slot_name, active, wal_status FROM pg_replication_slots WHERE slot_type = 'physical'",
            )
        }
        for name in self.params["slots"]:
            if have.get(name) == (False, "lost"):
                self.actions.append(f"drop slot {name}: its WAL is gone")
                if not self.module.check_mode:
                    self.row(connection, "SELECT pg_drop_replication_slot(%s)", (name,))
                have.pop(name)
            if name not in have:
                self.actions.append(f"create slot {name}")
                if not self.module.check_mode:
                    # Without a reserved position: on a replica it must not hold WAL back until it is used.
                    self.row(connection, "SELECT pg_create_physical_replication_slot(%s, false)", (name,))

    def enable(self):
        state = self.module.run_command(["systemctl", "is-enabled", self.unit])[1].strip()
        if state != "enabled":
            self.actions.append(f"enable {self.unit}: is {state or 'unknown'}")
            if not self.module.check_mode:
                self.systemctl("enable", self.unit)

    def present(self):
        report, action = self.report(), self.params["action"]
        if report["data"] == "unknown":
            raise PostgresError(report["error"])
        if report["data"] != "present":
            if action not in ("initdb", "clone"):
                raise PostgresError(f"{self.data} is {report['data']}, but the plan says {action}. Run again.")
            if self.module.check_mode:
                self.actions.append(f"{action}, start {self.unit}")
                return report
            self.create(action)
        if not report["running"]:
            if action == "keep":
                raise PostgresError("the server stopped since it was discovered. Run again.")
            if self.module.check_mode:
                self.actions.append(f"start {self.unit}: it is stopped")
                return report
            self.start("new data" if report["data"] != "present" else "it was stopped")
        self.enable()
        with self.wait_connection() as connection:
            self.tend(connection)
        return report


def sync_directory(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["discovered", "present"], "default": "present"},
            "version": {"type": "int", "default": 17},
            "cluster": {"type": "str", "default": "main"},
            "port": {"type": "int", "default": 5432},
            "action": {"type": "str", "choices": ["keep", "initdb", "clone", "start"], "default": "keep"},
            "primary_conninfo": {"type": "dict", "default": {}, "no_log": False},
            "slot": {"type": "str"},
            "slots": {"type": "list", "elements": "str", "default": []},
            "seed": {"type": "dict", "default": {}},
            "initdb_options": {"type": "list", "elements": "str", "default": []},
            "reload_on": {"type": "list", "elements": "path", "default": []},
            "restart_on": {"type": "list", "elements": "path", "default": []},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    instance = Instance(module)
    if module.params["state"] == "discovered":
        module.exit_json(changed=False, instance=instance.report(), actions=[], pending_restart=[])
    try:
        report = instance.present()
    except (PostgresError, OSError) as error:
        module.fail_json(msg=f"PostgreSQL {instance.name}: {error}", actions=instance.actions)
    module.exit_json(
        changed=bool(instance.actions), instance=report, actions=instance.actions, pending_restart=instance.pending
    )


if __name__ == "__main__":
    main()
