"""A replica: it streams from the primary, whose certificate it verifies."""

from scenario import sql

testinfra_hosts = ["m2"]  # molecule/inventory: the host that is not postgres_bootstrap_primary


def test_it_streams_from_a_primary_that_it_verifies(host):
    assert sql(host, "SELECT pg_is_in_recovery()") == "t"
    assert sql(host, "SELECT status FROM pg_stat_wal_receiver") == "streaming"
    assert "verify-full" in sql(host, "SHOW primary_conninfo")
