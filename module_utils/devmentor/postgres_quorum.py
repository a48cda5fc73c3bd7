"""The replicas that commits wait for: setting the quorum once, and waiting until it has the changes.

What a quorum is (`quorum`, `quorum_names`) is in `postgres`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .postgres import PostgresError, quorum, quorum_names
from .postgres_catalogs import Catalogs
from .postgres_objects import Statement


def seeded(catalogs: Catalogs) -> bool:
    return bool(
        catalogs.query(
            "postgres",
            "SELECT 1 FROM pg_file_settings WHERE name = 'synchronous_standby_names' "
            "AND sourcefile LIKE '%%/postgresql.auto.conf'",
        )
    )


def seed_quorum(catalogs: Catalogs, hosts: Sequence[str], timeout: int) -> None:
    """Has commits wait for a quorum of `hosts` once that many stream; never touches a setting that is there."""
    if not hosts or seeded(catalogs):
        return
    names, needed = quorum_names(list(hosts)), quorum(len(hosts))
    plan = [Statement("ALTER SYSTEM SET synchronous_standby_names TO %s", (), (names,))]
    if not catalogs.check:
        deadline = time.monotonic() + timeout
        while True:
            rows = catalogs.query(
                "postgres", "SELECT application_name, state FROM pg_stat_replication ORDER BY application_name"
            )
            streaming = [name for name, state in rows if state == "streaming" and name in hosts]
            if len(set(streaming)) >= needed:
                break
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"Only {sorted(set(streaming))} of the replicas {hosts} stream after {timeout} s, {needed} are "
                    "needed before commits may wait for them. Look at the replicas' logs in /var/log/postgresql and "
                    "run again."
                )
            time.sleep(0.25)
    catalogs.execute("postgres", plan, transaction=False)
    if not catalogs.check:
        catalogs.query("postgres", "SELECT pg_reload_conf()")


def acknowledge(catalogs: Catalogs, timeout: int) -> None:
    """Waits until the quorum has what was committed here, if there is a quorum."""
    setting = catalogs.query("postgres", "SHOW synchronous_standby_names")[0][0]
    if not setting:
        return
    needed = int(setting.split()[1]) if setting.upper().startswith(("ANY ", "FIRST ")) else 1
    lsn = catalogs.query("postgres", "SELECT pg_current_wal_lsn()::text")[0][0]
    deadline = time.monotonic() + timeout
    while True:
        count = catalogs.query(
            "postgres",
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('quorum', 'sync') AND flush_lsn >= %s",
            (lsn,),
        )[0][0]
        if count >= needed:
            return
        if time.monotonic() > deadline:
            raise PostgresError(
                f"{count} replicas have the changes after {timeout} s, {needed} are needed ({setting}). The "
                "cluster takes no writes until enough replicas stream; start them and run again."
            )
        time.sleep(0.1)
