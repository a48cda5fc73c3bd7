"""On every host: the backup is seen, a segment comes back, and a miss is answered fast."""

import json
import time

testinfra_hosts = ["postgres"]

AS_POSTGRES = "cd / && runuser -u postgres --"


def test_one_full_backup_is_there(host):
    info = json.loads(host.check_output(f"{AS_POSTGRES} pgbackrest --stanza=devmentor --output=json info"))
    assert info[0]["status"]["code"] == 0
    assert [backup["type"] for backup in info[0]["backup"]] == ["full"]
    assert info[0]["cipher"] == "aes-256-cbc"


def test_a_segment_comes_back(host):
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


def test_the_timers_run(host):
    for name in ("pgbackrest-full.timer", "pgbackrest-diff.timer"):
        assert host.service(name).is_running
        assert host.service(name).is_enabled


def test_secrets_are_not_readable(host):
    config = host.file("/etc/pgbackrest/pgbackrest.conf")
    assert (config.mode, config.user, config.group) == (0o640, "root", "postgres")
