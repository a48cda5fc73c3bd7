"""Each instance: TLS with a certificate only, each user its rights only, old keys go, a restart begins empty."""

import pytest

testinfra_hosts = ["cache"]

TLS = "--tls --cacert /etc/devmentor/tls/ca.crt"
CERTIFICATE = "--cert /etc/devmentor/tls/host.crt --key /etc/devmentor/tls/host.key"


@pytest.fixture
def valkey(host):
    """Run commands as a user; several on standard input share a connection."""
    variables = host.ansible.get_variables()
    address = variables["lab_addresses"][variables["inventory_hostname"]]

    def run(commands, user="qwen", certificate=CERTIFICATE, password=None):
        secret = password or variables["vault_cache_password" if user == "qwen" else "vault_cache_exporter_password"]
        client = f"valkey-cli -h {address} {TLS} {certificate} --user {user} --no-auth-warning"
        # The password goes by the environment of a shell that reads it from a here document: never by argv on the host.
        script = f"export REDISCLI_AUTH='{secret}'; printf '%s\\n' \"{commands}\" | {client} 2>&1"
        return host.run(script).stdout

    return run


def test_the_unit(host):
    unit = host.service("valkey-server")
    assert unit.is_running
    assert unit.is_enabled
    shown = host.check_output("systemctl show valkey-server -p Slice -p MemoryMax -p ProtectSystem")
    assert "Slice=devmentor-cache.slice" in shown
    assert f"MemoryMax={(8 * 3 // 2 + 128) * 1024**2}" in shown
    assert "ProtectSystem=strict" in shown


def test_it_answers_with_a_certificate_and_a_password(valkey):
    assert valkey("SET qwen:a 1\nGET qwen:a").split() == ["OK", "1"]


def test_without_a_certificate_nothing_is_answered(valkey):
    answer = valkey("PING", certificate="")
    assert "PONG" not in answer
    assert "closed" in answer or "SSL" in answer


def test_plain_text_is_not_spoken(host):
    variables = host.ansible.get_variables()
    address = variables["lab_addresses"][variables["inventory_hostname"]]
    assert "PONG" not in host.run(f"valkey-cli -h {address} PING").stdout


def test_a_wrong_password_is_refused(valkey):
    answer = valkey("GET qwen:a", password="wrong")
    assert "WRONGPASS" in answer


@pytest.mark.parametrize(
    "command", ["GET other", "SET other 1", "FLUSHALL", "CONFIG GET maxmemory", "KEYS qwen:*", "ACL LIST"]
)
def test_the_service_has_no_more_than_it_needs(valkey, command):
    assert "NOPERM" in valkey(command)


def test_the_exporter_sees_statistics_and_no_key(valkey):
    assert "redis_version" in valkey("INFO", user="exporter")
    assert "NOPERM" in valkey("GET qwen:a", user="exporter")


def test_the_default_user_is_off(host):
    variables = host.ansible.get_variables()
    address = variables["lab_addresses"][variables["inventory_hostname"]]
    assert "NOAUTH" in host.run(f"valkey-cli -h {address} {TLS} {CERTIFICATE} PING").stdout


def test_the_oldest_keys_go_when_it_is_full(valkey):
    assert valkey("SET qwen:first 1").strip() == "OK"
    value = "x" * 4000
    answers = valkey("\n".join(f"SET qwen:fill:{index} {value}" for index in range(4000)))
    assert set(answers.split()) == {"OK"}
    assert valkey("GET qwen:first").strip() == ""


def test_no_password_is_on_disk_and_the_list_is_closed(host):
    acl = host.file("/etc/devmentor/cache/users.acl")
    assert (acl.user, acl.group, acl.mode) == ("root", "valkey", 0o640)
    variables = host.ansible.get_variables()
    for name in ("vault_cache_password", "vault_cache_exporter_password"):
        assert variables[name] not in acl.content_string
    assert "user default off" in acl.content_string


def test_a_restart_begins_empty(host, valkey):
    assert valkey("SET qwen:kept 1").strip() == "OK"
    host.check_output("systemctl restart valkey-server")
    assert valkey("GET qwen:kept").strip() == ""
    assert host.check_output("find /var/lib/valkey -type f") == ""
