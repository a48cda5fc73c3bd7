"""What a primary and its replicas have in common: their settings, their roles, and that only TLS gets in."""

import pytest
from scenario import sql

testinfra_hosts = ["postgres"]


def test_the_unit_is_in_its_slice(host):
    unit = host.service("postgresql@17-main")
    assert unit.is_running
    assert unit.is_enabled
    assert unit.systemd_properties["Slice"] == "devmentor-postgres.slice"


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
