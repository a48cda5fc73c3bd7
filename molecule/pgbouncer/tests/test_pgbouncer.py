"""The three entries lead where they say, over TLS, for who has the password."""

import pytest
from scenario import sql

testinfra_hosts = ["pgbouncer"]


@pytest.fixture
def ask(host, secret_file):
    password = f"$(cat {secret_file('vault_postgres_pbml_password', '{{ vault_postgres_pbml_password }}')})"
    address = host.check_output("hostname -I").split()[0]

    def run(database, text, options="", secret=password):
        conninfo = (
            f"host={address} port=6432 user=pbml dbname={database} sslmode=verify-full "
            f"sslrootcert=/etc/devmentor/tls/ca.crt connect_timeout=10 {options}"
        )
        return host.run(f"PGPASSWORD={secret} psql -XAtq '{conninfo}' -c \"{text}\"")

    return run


@pytest.mark.parametrize(("entry", "recovery"), [("devmentor", "f"), ("devmentor_ro", "t"), ("devmentor_session", "f")])
def test_entries(ask, entry, recovery):
    answer = ask(entry, "SELECT pg_is_in_recovery()")
    assert answer.stdout.strip() == recovery, answer.stderr


def test_the_application_writes_into_its_own_schema(ask):
    assert ask("devmentor", "SHOW search_path").stdout.strip() == "pbml"
    assert ask("devmentor", "CREATE TABLE molecule (n int); DROP TABLE molecule").rc == 0
    assert "permission denied" in ask("devmentor", "CREATE TABLE qwen.molecule (n int)").stderr


def test_reading_entry_does_not_write(ask):
    assert "read-only" in ask("devmentor_ro", "CREATE TABLE molecule (n int)").stderr


def test_a_session_can_listen(ask):
    assert ask("devmentor_session", "LISTEN molecule").rc == 0


@pytest.mark.parametrize("entry", ["devmentor", "devmentor_ro"])
def test_a_wrong_password_is_refused(ask, entry):
    answer = ask(entry, "SELECT 1", secret="wrong")
    assert answer.rc != 0
    assert "authentication failed" in answer.stderr


def test_no_plain_text(ask):
    answer = ask("devmentor", "SELECT 1", options="sslmode=disable")
    assert answer.rc != 0
    assert "SSL required" in answer.stderr


def test_the_lookup_gives_no_verifier_of_a_superuser_or_of_replication(host):
    found = {
        name: sql(host, f"SELECT count(*) FROM pgbouncer.get_auth('{name}')", "devmentor")
        for name in ("postgres", "replicator", "pbml")
    }
    assert found == {"postgres": "0", "replicator": "0", "pbml": "1"}


def test_the_console_takes_the_unix_user(host):
    console = "cd / && runuser -u postgres -- psql -XAtq -p 6432 -U pgbouncer pgbouncer"
    config = host.check_output(f"{console} -c 'SHOW CONFIG'")
    settings = {line.split("|")[0]: line.split("|")[1] for line in config.splitlines()}
    wanted = {
        "pool_mode": "transaction", "max_client_conn": "1000", "so_reuseport": "1", "server_login_retry": "0.2",
        "server_connect_timeout": "2", "server_tls_sslmode": "verify-ca", "client_tls_sslmode": "require",
    }
    assert {name: settings[name] for name in wanted} == wanted


def test_the_server_side_is_tls(host, ask):
    assert ask("devmentor", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").stdout.strip() == "t"


def test_secrets_are_not_readable(host):
    for name in ("userlist.txt", "pgbouncer.ini", "targets.ini"):
        assert host.file(f"/etc/pgbouncer/{name}").mode == 0o640
