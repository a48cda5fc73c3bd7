"""When a host's certificate no longer serves, with real keys and signatures."""

from __future__ import annotations

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from module_utils.devmentor.certificates import (
    CertificateError,
    Wanted,
    general_names,
    load_certificate,
    load_key,
    new_key,
    reasons_to_renew,
    request,
)

NOW = datetime.datetime(2026, 1, 1)
DAY = datetime.timedelta(days=1)
WANTED = Wanted("pg1", ("pg1", "10.0.0.1"), 30)


class Authority:
    def __init__(self, name="platform"):
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key.public_key(), [], 3650)

    def _sign(self, subject, public_key, extensions, days):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + days * DAY)
        )
        for extension in extensions:
            builder = builder.add_extension(extension.value, critical=extension.critical)
        return builder.sign(self.key, hashes.SHA256())

    def answer(self, pem, days=397):
        csr = x509.load_pem_x509_csr(pem.encode())
        assert csr.is_signature_valid
        return self._sign(csr.subject, csr.public_key(), list(csr.extensions), days)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def key():
    return load_key(new_key(), "host.key")


def reasons(certificate, key, authority, wanted=WANTED, now=NOW):
    return reasons_to_renew(certificate, key, authority.certificate, wanted, now)


def test_a_fresh_certificate_serves(authority, key):
    assert reasons(authority.answer(request(key, WANTED)), key, authority) == []


def test_it_is_for_servers_and_clients_and_not_a_ca(authority, key):
    extensions = authority.answer(request(key, WANTED)).extensions
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_it_is_renewed_in_time_and_not_before(authority, key):
    certificate = authority.answer(request(key, WANTED), days=40)
    assert reasons(certificate, key, authority, now=NOW + 10 * DAY) == []
    assert reasons(certificate, key, authority, now=NOW + 11 * DAY) == ["expires in 29 days (renewed below 30)"]


def test_changed_names_are_named(authority, key):
    certificate = authority.answer(request(key, WANTED))
    wanted = Wanted("pg1", ("pg1", "10.0.0.2"), 30)
    assert reasons(certificate, key, authority, wanted) == ["names differ: +10.0.0.2 -10.0.0.1"]


def test_another_key_and_another_ca_are_noticed_even_under_the_same_name(authority, key):
    certificate = authority.answer(request(key, WANTED))
    assert reasons(certificate, load_key(new_key(), "x"), authority) == ["is not of this key"]
    assert reasons(certificate, key, Authority()) == ["is not signed by this CA"]
    assert reasons(certificate, key, Authority("other")) == ["is not signed by this CA"]


def test_a_certificate_without_names_is_renewed(authority, key):
    bare = authority._sign(authority.name, key.public_key(), [], 397)
    assert reasons(bare, key, authority) == ["names differ: +10.0.0.1 +pg1"]


def test_names_are_addresses_where_they_are():
    assert general_names(("pg1", "10.0.0.1", "pg1", "::1")) == [
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
        x509.DNSName("pg1"),
    ]


def test_a_name_that_no_certificate_can_hold_is_refused():
    with pytest.raises(CertificateError, match="neither an address nor a DNS name"):
        general_names(("hôte",))


def test_a_long_host_name_still_gets_a_request(key):
    name = "a" * 60 + ".example.com"
    csr = x509.load_pem_x509_csr(request(key, Wanted(name, (name,), 30)).encode())
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]


@pytest.mark.parametrize("text", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_broken_key_says_what_to_do(text):
    with pytest.raises(CertificateError, match=r"host\.key is not .* Remove it and run again"):
        load_key(text, "host.key")


def test_a_broken_certificate_is_an_error():
    with pytest.raises(CertificateError, match=r"host\.crt is not a certificate"):
        load_certificate(b"nonsense", "host.crt")
