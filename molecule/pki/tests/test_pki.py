"""Each host's certificate serves both ways, and nothing secret is where it should not be."""

import pytest
from scenario import members

testinfra_hosts = ["gateway"]
TLS = "/etc/devmentor/tls"


@pytest.fixture(scope="module")
def others(host):
    return members(host, "gateway")


@pytest.mark.parametrize(
    ("name", "group", "mode"),
    [
        ("ca.crt", "root", 0o644),
        ("host.crt", "root", 0o644),
        ("host.key", "devmentor-tls", 0o640),
        ("host.pem", "devmentor-tls", 0o640),
    ],
)
def test_files_and_who_may_read_them(host, name, group, mode):
    file = host.file(f"{TLS}/{name}")
    assert (file.user, file.group, file.mode) == ("root", group, mode)


def test_the_chain_is_valid_under_strict_rules_for_server_and_client(host):
    for purpose in ("sslserver", "sslclient"):
        command = f"openssl verify -x509_strict -purpose {purpose} -CAfile {TLS}/ca.crt {TLS}/host.crt"
        assert host.run(command).rc == 0, purpose


def test_names_and_addresses_are_in_it(host):
    variables = host.ansible.get_variables()
    address = host.run("hostname --all-ip-addresses").stdout.split()[0]
    for option in (
        f"-checkhost {variables['inventory_hostname']}",
        "-checkhost localhost",
        "-checkhost pki.example.com",
        f"-checkip {address}",
        "-checkip 127.0.0.1",
    ):
        assert "does match" in host.run(f"openssl x509 -in {TLS}/host.crt -noout {option}").stdout, option
    assert "NOT match" in host.run(f"openssl x509 -in {TLS}/host.crt -noout -checkhost elsewhere").stdout


def test_key_and_certificate_belong_together_and_the_bundle_holds_both(host):
    of_key = host.check_output(f"openssl pkey -in {TLS}/host.key -pubout")
    assert of_key == host.check_output(f"openssl x509 -in {TLS}/host.crt -noout -pubkey")
    assert of_key == host.check_output(f"openssl pkey -in {TLS}/host.pem -pubout")
    assert of_key == host.check_output(f"openssl x509 -in {TLS}/host.pem -noout -pubkey")


def test_no_two_hosts_have_the_same_key(others):
    digests = [host.run(f"sha256sum {TLS}/host.key").stdout.split()[0] for host in others.values()]
    assert len(set(digests)) == len(others)


def test_the_cas_key_is_on_no_host(host):
    ca = host.check_output(f"openssl x509 -in {TLS}/ca.crt -noout -pubkey")
    keys = host.run("grep -rl -e 'PRIVATE KEY' /etc/devmentor /var/lib/devmentor /root /tmp").stdout.split()
    assert keys
    for key in keys:
        assert host.run(f"openssl pkey -in {key} -pubout").stdout != ca, key


def test_mutual_tls_between_two_hosts_and_no_entrance_without_a_certificate(host, others):
    name = host.ansible.get_variables()["inventory_hostname"]
    peer_name, peer = next((other, each) for other, each in others.items() if other != name)
    server = (
        f"openssl s_server -accept 4433 -cert {TLS}/host.crt -key {TLS}/host.key -CAfile {TLS}/ca.crt -Verify 1 "
        "-verify_return_error -www"
    )
    assert peer.run(f"systemd-run --collect --unit pki-test {server}").rc == 0
    try:
        trust = f"--silent --max-time 5 --retry 5 --retry-connrefused --retry-delay 1 --cacert {TLS}/ca.crt"
        client = f"--cert {TLS}/host.crt --key {TLS}/host.key"
        assert host.run(f"curl {trust} {client} --output /dev/null https://{peer_name}:4433/").rc == 0
        assert host.run(f"curl {trust} --output /dev/null https://{peer_name}:4433/").rc != 0
    finally:
        peer.run("systemctl stop pki-test")


def test_the_system_does_not_trust_the_platforms_ca(host):
    assert host.run(f"openssl verify -CApath /etc/ssl/certs {TLS}/host.crt").rc != 0
