"""A primary and its replicas: they stream, a commit waits for a quorum, and only TLS gets in."""

import time

import pytest

testinfra_hosts = ["postgres"]


def sql(host, text, database="postgres"):
    return host.check_output(f"cd / && runuser -u postgres -- psql -XAtqc \"{text}\" {database}")


@pytest.fixture
def is_primary(host):
    return sql(host, "SELECT pg_is_in_recovery()") == "f"


def peers(host):
    names = sorted(set(host.ansible.get_variables()["groups"]["postgres"]))
    offline = set(host.ansible.get_variables()["groups"].get("offline", []))
    return [
        host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)
        for name in names
        if name not in offline
    ]


def until(check, seconds=30):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.5)


def test_the_unit_is_in_its_slice(host):
    unit = host.service("postgresql@17-main")
    assert unit.is_running
    assert unit.is_enabled
    assert unit.systemd_properties["Slice"] == "devmentor-postgres.slice"


def test_replication(host, is_primary):
    if is_primary:
        rows = sql(host, "SELECT application_name, state, sync_state FROM pg_stat_replication").splitlines()
        followers = len(peers(host)) - 1
        assert len(rows) == followers
        assert all(row.endswith("|streaming|quorum") for row in rows)
        assert sql(host, "SELECT bool_and(active) FROM pg_replication_slots WHERE slot_type = 'physical'") == "t"
        assert sql(host, "SHOW synchronous_standby_names").startswith(f"ANY {(followers + 1) // 2} (")
    else:
        assert sql(host, "SELECT status FROM pg_stat_wal_receiver") == "streaming"
        assert "verify-full" in sql(host, "SHOW primary_conninfo")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data_checksums", "on"), ("wal_log_hints", "on"), ("wal_level", "logical"), ("sync_replication_slots", "on"),
        ("password_encryption", "scram-sha-256"), ("ssl", "on"), ("synchronous_commit", "on"),
    ],
)
def test_settings(host, setting, value):
    assert sql(host, f"SHOW {setting}") == value


def test_nothing_waits_for_a_restart(host):
    assert sql(host, "SELECT count(*) FROM pg_settings WHERE pending_restart") == "0"


def test_passwords_are_scram_verifiers(host):
    rows = sql(host, "SELECT rolname, left(rolpassword, 14) FROM pg_authid WHERE rolcanlogin AND NOT rolsuper")
    assert len(rows.splitlines()) == 5
    assert all(row.endswith("|SCRAM-SHA-256$") for row in rows.splitlines())


def test_roles_see_their_own_schema(host):
    text = "SELECT has_schema_privilege('pbml', 'pbml', 'CREATE'), has_schema_privilege('pbml', 'qwen', 'USAGE')"
    assert sql(host, text, "devmentor") == "t|f"
    assert sql(host, "SELECT has_database_privilege('replicator', 'devmentor', 'CONNECT')") == "f"


def connect(host, options):
    tls = "sslrootcert=/etc/devmentor/tls/ca.crt sslcert=/etc/devmentor/tls/host.crt sslkey=/etc/devmentor/tls/host.key"
    address = host.check_output("hostname -I").split()[0]
    return host.run(f"PGPASSWORD=x psql -XAtqc 'SELECT 1' 'host={address} {tls} {options}'")


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ("user=monitoring dbname=postgres sslmode=disable", "no encryption"),
        ("user=postgres dbname=postgres sslmode=verify-full", "no pg_hba.conf entry"),
        ("user=monitoring dbname=postgres sslmode=verify-full", "password authentication failed"),
    ],
)
def test_what_does_not_get_in(host, options, refusal):
    answer = connect(host, options)
    assert answer.rc != 0
    assert refusal in answer.stderr


def test_secrets_are_not_readable(host):
    assert host.file("/etc/devmentor/postgres/replication.pgpass").mode == 0o600
    assert host.file("/var/lib/postgresql/17/main").mode == 0o700


def test_a_commit_waits_for_the_quorum(host, is_primary):
    """Without replicas nothing is acknowledged; with them back, a commit is."""
    if not is_primary:
        pytest.skip("acts from the primary's side")
    commit = "SELECT pg_logical_emit_message(true, 'molecule', 'commit')"
    replicas = [peer for peer in peers(host) if sql(peer, "SELECT pg_is_in_recovery()") == "t"]
    for replica in replicas:
        replica.check_output("systemctl stop postgresql@17-main")
    try:
        hung = host.run(f'cd / && timeout 4 runuser -u postgres -- psql -XAtqc "{commit}" postgres')
        assert hung.rc == 124
    finally:
        for replica in replicas:
            replica.check_output("systemctl start postgresql@17-main")
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    until(lambda: sql(host, streaming) == str(len(replicas)))
    assert host.run(f'cd / && timeout 10 runuser -u postgres -- psql -XAtqc "{commit}" postgres').rc == 0
