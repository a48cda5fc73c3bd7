"""The primary: its replicas stream, and a commit waits for a quorum of them."""

from scenario import members, sql, until

testinfra_hosts = ["m1"]  # molecule/inventory: postgres_bootstrap_primary

COMMIT = "SELECT pg_logical_emit_message(true, 'molecule', 'commit')"


def replicas(host):
    return [peer for peer in members(host, "postgres").values() if sql(peer, "SELECT pg_is_in_recovery()") == "t"]


def commit(host, seconds):
    return host.run(f'cd / && timeout {seconds} runuser -u postgres -- psql -XAtqc "{COMMIT}" postgres').rc


def test_every_other_host_is_a_replica_that_streams(host):
    followers = len(members(host, "postgres")) - 1
    assert len(replicas(host)) == followers
    rows = sql(host, "SELECT application_name, state, sync_state FROM pg_stat_replication").splitlines()
    assert len(rows) == followers
    assert all(row.endswith("|streaming|quorum") for row in rows)
    assert sql(host, "SELECT bool_and(active) FROM pg_replication_slots WHERE slot_type = 'physical'") == "t"
    assert sql(host, "SHOW synchronous_standby_names").startswith(f"ANY {(followers + 1) // 2} (")


def test_a_commit_waits_for_the_quorum(host):
    """Without replicas nothing is acknowledged; with them back, a commit is."""
    stopped = replicas(host)
    assert stopped
    for replica in stopped:
        replica.check_output("systemctl stop postgresql@17-main")
    try:
        assert commit(host, 4) == 124
    finally:
        for replica in stopped:
            replica.check_output("systemctl start postgresql@17-main")
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    until(lambda: sql(host, streaming) == str(len(stopped)))
    assert commit(host, 10) == 0
