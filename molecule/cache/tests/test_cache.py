"""Each instance: TLS with a certificate only, each user its rights only, old keys go, a restart begins empty."""

import shlex
import time

import pytest
from scenario import CERTIFICATE, TLS, address

testinfra_hosts = ["cache"]

MAXMEMORY_MIB = 8  # converge.yml


@pytest.fixture
def valkey(host, secret_file):
    """Run commands as a user over one connection; they are given, or printed on the host by a command line."""

    def run(commands="", user="qwen", certificate=CERTIFICATE, password=None, printed_by=None):
        variable = "vault_cache_password" if user == "qwen" else "vault_cache_exporter_password"
        secret = password or f"$(cat {secret_file(variable, f'{{{{ {variable} }}}}')})"
        client = f"valkey-cli -h {address(host)} --tls {TLS} {certificate} --user {user} --no-auth-warning"
        source = printed_by or f"printf '%s\\n' {shlex.quote(commands)}"
        return host.run(f"export REDISCLI_AUTH={secret}; {source} | {client} 2>&1").stdout

    return run


def test_the_unit(host):
    unit = host.service("valkey-server")
    assert unit.is_running
    assert unit.is_enabled
    shown = host.check_output("systemctl show valkey-server -p Slice -p MemoryMax -p ProtectSystem")
    assert "Slice=devmentor-cache.slice" in shown
    assert f"MemoryMax={(MAXMEMORY_MIB * 3 // 2 + 128) * 1024**2}" in shown
    assert "ProtectSystem=strict" in shown


def test_it_answers_with_a_certificate_and_a_password(valkey):
    assert valkey("SET qwen:a 1\nGET qwen:a").split() == ["OK", "1"]


def test_without_a_certificate_nothing_is_answered(valkey):
    answer = valkey("PING", certificate="")
    assert "PONG" not in answer
    # What the client sees of a refused handshake depends on who is faster.
    assert any(word in answer for word in ("closed", "SSL", "reset by peer"))


def test_plain_text_is_not_spoken(host):
    # Any answer, a refusal too, would come on standard output.
    answer = host.run(f"valkey-cli -h {address(host)} PING")
    assert (answer.rc, answer.stdout) == (1, "")


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
    assert "NOAUTH" in host.run(f"valkey-cli -h {address(host)} --tls {TLS} {CERTIFICATE} PING").stdout


def test_the_oldest_keys_go_when_it_is_full(valkey):
    assert valkey("SET qwen:first 1").strip() == "OK"
    time.sleep(2)  # a key's age is counted in whole seconds
    # Eight times as much as there is room for; the server makes each value itself, of one byte at its end.
    size = 100_000
    count = 8 * MAXMEMORY_MIB * 1024**2 // size
    answers = valkey(printed_by=f"seq -f 'SETRANGE qwen:fill:%g {size - 1} x' {count}")
    assert answers.split() == [str(size)] * count
    assert valkey(f"EXISTS qwen:first\nSTRLEN qwen:fill:{count}").split() == ["0", str(size)]


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
