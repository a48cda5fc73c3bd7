"""The leader: not restarted for its guard, which wants to hear that it still leads; the gate before its archive."""

from scenario import sql, until

testinfra_hosts = ["m1"]  # molecule/inventory: postgres_bootstrap_primary

AGENT = "/opt/devmentor/pgagent/current/bin/devmentor-pgagent"
ENV = "/etc/devmentor/pgagent/pgagent.env"
HOLD = "/var/lib/devmentor/pgagent/archive-hold"
AS_POSTGRES = "cd / && setpriv --reset-env --reuid=postgres --regid=postgres --init-groups"


def test_it_was_not_restarted_for_the_guard(host):
    started = float(sql(host, "SELECT extract(epoch FROM pg_postmaster_start_time())"))
    dropin = "/etc/systemd/system/postgresql@17-main.service.d/pgagent.conf"
    assert started < float(host.check_output(f"stat --format=%.Y {dropin}"))


def test_it_does_not_start_where_nobody_confirms_that_it_leads(host):
    env = "/run/molecule-guard.env"
    host.check_output(f"sed 's/^PGAGENT_PORT=.*/PGAGENT_PORT=1/' {ENV} > {env} && chmod 644 {env}")
    answer = host.run(f"{AS_POSTGRES} {AGENT} guard --env-file {env}")
    host.check_output(f"rm {env}")
    assert answer.rc == 1
    assert "1 of the followers m2 must say that no other leader was chosen" in answer.stderr


def counted(host, column):
    return int(sql(host, f"SELECT {column} FROM pg_stat_archiver"))


def segment(host):
    sql(host, "SELECT pg_logical_emit_message(true, 'molecule', 'fill'), pg_switch_wal()")


def test_nothing_is_archived_while_the_agent_holds_it(host):
    assert not host.file(HOLD).exists  # its rule is committed
    segment(host)
    until(lambda: counted(host, "archived_count") > 0)
    archived, failed = counted(host, "archived_count"), counted(host, "failed_count")
    host.check_output(f"touch {HOLD}")
    try:
        segment(host)
        until(lambda: counted(host, "failed_count") > failed, 90)
        assert counted(host, "archived_count") == archived
    finally:
        host.check_output(f"rm {HOLD}")
    until(lambda: counted(host, "archived_count") > archived, 90)
