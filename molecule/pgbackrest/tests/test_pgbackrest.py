"""WAL reaches the store within seconds, a full backup is there, and a miss is answered fast."""

import json
import time

import pytest

testinfra_hosts = ["postgres"]

AS_POSTGRES = "cd / && runuser -u postgres --"


def sql(host, text):
    return host.check_output(f'{AS_POSTGRES} psql -XAtqc "{text}" postgres')


@pytest.fixture
def primary(host):
    if sql(host, "SELECT pg_is_in_recovery()") == "t":
        pytest.skip("acts on the primary")
    return host


def test_one_full_backup_is_there(host):
    info = json.loads(host.check_output(f"{AS_POSTGRES} pgbackrest --stanza=devmentor --output=json info"))
    assert info[0]["status"]["code"] == 0
    assert [backup["type"] for backup in info[0]["backup"]] == ["full"]
    assert info[0]["cipher"] == "aes-256-cbc"


def test_wal_reaches_the_store(primary):
    sql(primary, "SELECT pg_logical_emit_message(true, 'molecule', 'x')")
    segment = sql(primary, "SELECT pg_walfile_name(pg_switch_wal())")
    deadline = time.monotonic() + 30
    while sql(primary, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") < segment:
        assert time.monotonic() < deadline, sql(primary, "SELECT * FROM pg_stat_archiver")
        time.sleep(0.5)


def test_a_segment_comes_back_on_a_replica(host):
    segment = json.loads(host.check_output(f"{AS_POSTGRES} pgbackrest --stanza=devmentor --output=json info"))
    newest = segment[0]["archive"][0]["max"]
    host.check_output(f"{AS_POSTGRES} pgbackrest --stanza=devmentor archive-get {newest} /tmp/molecule-wal")
    assert host.file("/tmp/molecule-wal").size == 16 * 1024 * 1024
    host.check_output("rm /tmp/molecule-wal")


def test_a_miss_is_fast(host):
    started = time.monotonic()
    missing = "00000001000000FF000000FF"
    assert host.run(f"{AS_POSTGRES} pgbackrest --stanza=devmentor archive-get {missing} /tmp/molecule-none").rc == 1
    assert time.monotonic() - started < 5


def test_the_timer_works_on_the_primary_and_skips_on_the_replica(host):
    for name in ("pgbackrest-full.timer", "pgbackrest-diff.timer"):
        assert host.service(name).is_running
        assert host.service(name).is_enabled
    standby = sql(host, "SELECT pg_is_in_recovery()") == "t"
    if standby:
        host.check_output("systemctl start pgbackrest-backup@diff.service")
        log = host.check_output("systemctl show -p Result --value pgbackrest-backup@diff.service")
        assert log == "exec-condition"


def test_secrets_are_not_readable(host):
    config = host.file("/etc/pgbackrest/pgbackrest.conf")
    assert (config.mode, config.user, config.group) == (0o640, "root", "postgres")
