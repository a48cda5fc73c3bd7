"""One PostgreSQL server as Debian's packages lay it out: where it is, what it holds, and how to ask it as its owner.

Changes nothing itself; `postgres_datadir` makes new data, module `postgres_instance` starts and tends the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import IO, Any

from ..devmentor_ha.textfiles import PostgresError, parse_auto_conf, parse_control_data
from .postgres import MINIMUM_VERSION, is_pristine

try:
    import psycopg2

    ConnectError: Any = psycopg2.OperationalError
except ImportError:  # before the packages are there
    psycopg2 = None
    ConnectError = ()

SYSTEM_USER = "postgres"
SOCKET_DIR = "/var/run/postgresql"
SIGNAL_FILES = ("standby.signal", "recovery.signal")
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


class Server:
    """The server of one of Debian's clusters. `timeout`: seconds to wait for one that runs and does not answer yet.

    `lock`: a file descriptor that the programs started here keep open, so that they hold it if they outlive us.
    """

    def __init__(self, version: int, cluster: str, port: int, timeout: int) -> None:
        self.version, self.cluster, self.port, self.timeout = version, cluster, port, timeout
        self.name = f"{version}-{cluster}"
        self.unit = f"postgresql@{self.name}.service"
        self.base = f"/var/lib/postgresql/{version}"
        self.data = f"{self.base}/{cluster}"
        self.bin = f"/usr/lib/postgresql/{version}/bin"
        self.log = f"/var/log/postgresql/postgresql-{self.name}.log"
        self.lock: int | None = None

    def report(self) -> dict[str, Any]:
        """What this host holds and runs. Anything that cannot be read makes `data` unknown, with the error."""
        report: dict[str, Any] = {
            "data": "unknown",
            "running": False,
            "standby": None,
            "system_identifier": "",
            "timeline": 0,
            "error": "",
            "seeded": [],
        }
        try:
            self.fill(report)
        except (PostgresError, OSError) as error:
            report.update(data="unknown", error=str(error))
        return report

    def fill(self, report: dict[str, Any]) -> None:
        if not os.path.isdir(self.data) or not os.listdir(self.data):
            report["data"] = "absent"
            return
        version_file = os.path.join(self.data, "PG_VERSION")
        if not os.path.exists(version_file):
            raise PostgresError(f"{self.data} is not empty and holds no database (no PG_VERSION). Move it away.")
        with open(version_file) as handle:
            major = handle.read().strip()
        if major != str(self.version):
            raise PostgresError(f"{self.data} is of PostgreSQL {major}, not {self.version}. Upgrade it.")
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

    def control(self) -> dict[str, str]:
        done = self.as_user([f"{self.bin}/pg_controldata", self.data], check=True)
        return parse_control_data(done.stdout)

    def process(self) -> int | None:
        """The postmaster's pid, None where none runs. A stale pid file, or one of another program's pid, is none."""
        try:
            with open(os.path.join(self.data, "postmaster.pid")) as handle:
                pid = int(handle.readline())
            with open(f"/proc/{pid}/comm") as handle:
                return pid if handle.read().strip() == "postgres" else None
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        if psycopg2 is None:
            raise PostgresError("python3-psycopg2 is not installed, but a server runs. Install it.")
        entry, before = pwd.getpwnam(SYSTEM_USER), (os.geteuid(), os.getegid())
        os.setegid(entry.pw_gid)
        os.seteuid(entry.pw_uid)  # peer authentication looks at the effective user at connect time
        try:
            connection = psycopg2.connect(
                host=SOCKET_DIR,
                port=self.port,
                dbname="postgres",
                user=SYSTEM_USER,
                connect_timeout=3,
                options="-c statement_timeout=15s",
                application_name="ansible postgres_instance",
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
    def wait_connection(self) -> Iterator[Any]:
        deadline = time.monotonic() + self.timeout
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    connection = stack.enter_context(self.connection())
                    break
                except ConnectError as error:
                    reason = str(error).strip().splitlines()[-1]
                if self.process() is None:
                    raise PostgresError(f"the server went away while it was asked ({reason}).\n{self.log_tail()}")
                if time.monotonic() > deadline:
                    raise PostgresError(
                        f"the server runs but does not answer after {self.timeout} s ({reason}).\n{self.log_tail()}"
                    )
                time.sleep(0.25)
            yield connection

    @staticmethod
    def rows(connection: Any, text: str, values: tuple[object, ...] = ()) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(text, values)
            found: list[Any] = cursor.fetchall()
        return found

    def row(self, connection: Any, text: str, values: tuple[object, ...] = ()) -> Any:
        return self.rows(connection, text, values)[0]

    def as_user(
        self, command: list[str], check: bool = False, stderr: int | IO[str] = subprocess.PIPE
    ) -> subprocess.CompletedProcess[str]:
        entry = pwd.getpwnam(SYSTEM_USER)

        def die_with_parent() -> None:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        done = subprocess.run(
            command,
            user=entry.pw_uid,
            group=entry.pw_gid,
            cwd="/",
            extra_groups=os.getgrouplist(SYSTEM_USER, entry.pw_gid),
            umask=0o077,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": entry.pw_dir},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            preexec_fn=die_with_parent,
            pass_fds=[self.lock] if self.lock is not None else [],
            check=False,
        )
        if check and done.returncode != 0:
            raise PostgresError(f"{command[0]} failed with {done.returncode}: {(done.stderr or done.stdout).strip()}")
        return done

    def log_tail(self) -> str:
        try:
            with open(self.log, "rb") as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - 3000))
                lines = handle.read().decode("utf-8", "replace").splitlines()[-12:]
        except OSError:
            return f"({self.log} has nothing)"
        return f"The last lines of {self.log}:\n" + "\n".join(lines)
