"""The primary's WAL reaches the store within seconds."""

from scenario import sql, until

testinfra_hosts = ["m1"]  # molecule/inventory: postgres_bootstrap_primary


def next_segment(host):
    sql(host, "SELECT pg_logical_emit_message(true, 'molecule', 'x')")
    return sql(host, "SELECT pg_walfile_name(pg_switch_wal())")


def archived(host, segment):
    return sql(host, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= segment


def test_wal_reaches_the_store(host):
    segment = next_segment(host)
    until(lambda: archived(host, segment))


def test_a_push_whose_process_ended_early_comes_again_soon(host):
    # As when stanza-create has the lock at that moment: the push waits, and a site run's check gives up before it does.
    killer = "for i in $(seq 500); do pkill -KILL -f archive-push:async && exit 0; sleep 0.01; done; exit 1"
    host.check_output(f"systemd-run --quiet --collect --unit=kill-push -- sh -c '{killer}'")
    segment = next_segment(host)
    until(lambda: archived(host, segment))
