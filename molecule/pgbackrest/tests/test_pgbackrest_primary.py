"""The primary's WAL reaches the store within seconds."""

from scenario import sql, until

testinfra_hosts = ["m1"]  # molecule/inventory: postgres_bootstrap_primary


def test_wal_reaches_the_store(host):
    sql(host, "SELECT pg_logical_emit_message(true, 'molecule', 'x')")
    segment = sql(host, "SELECT pg_walfile_name(pg_switch_wal())")
    until(lambda: sql(host, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= segment)
