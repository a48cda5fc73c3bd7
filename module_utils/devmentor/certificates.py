"""A host's key pair and whether its certificate still serves: the pure part of `host_certificate`.

The key is made on the host and never leaves it. What leaves is a request; what comes back is a certificate.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class CertificateError(Exception):
    """A key, certificate or name that cannot be used; the message says which and the remedy."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a certificate must be. names: DNS names and addresses; renew_days: too little validity, in days."""

    common_name: str
    names: tuple[str, ...]
    renew_days: int


def new_key() -> bytes:
    """A P-256 private key, unencrypted PKCS#8 PEM: fast, and every TLS library of the platform takes it."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes, path: str) -> ec.EllipticCurvePrivateKey:
    """The key of a PEM file. Raises CertificateError where it is none of ours."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"{path} is not an unencrypted private key ({error}). Remove it and run again: a new one is made."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not an elliptic-curve key. Remove it and run again: a new one is made.")
    return key


def general_names(names: tuple[str, ...]) -> list[x509.GeneralName]:
    """Subject alternative names, addresses as addresses; sorted and without doubles."""
    result: list[x509.GeneralName] = []
    for name in sorted(set(names)):
        try:
            result.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            try:
                result.append(x509.DNSName(name))
            except ValueError as error:
                raise CertificateError(f"{name!r} is neither an address nor a DNS name: {error}.") from error
    return result


def request(key: ec.EllipticCurvePrivateKey, wanted: Wanted) -> str:
    """A signing request (PEM) for a certificate that serves as server and as client."""
    # X.520 bounds a common name to 64 characters; names are checked in the alternative names alone.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name[:64])])
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName(general_names(wanted.names)), critical=False)
        .add_extension(x509.ExtendedKeyUsage(USAGES), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def load_certificate(pem: bytes, what: str) -> x509.Certificate:
    """The first certificate of a PEM text. Raises CertificateError where there is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateError(f"{what} is not a certificate: {error}.") from error


def not_after(certificate: x509.Certificate) -> datetime.datetime:
    """End of validity, in UTC without a zone (the form that both Debian 12's and newer libraries have)."""
    aware = getattr(certificate, "not_valid_after_utc", None)
    if aware is not None:
        return aware.replace(tzinfo=None)  # type: ignore[no-any-return]
    return certificate.not_valid_after


def signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether the CA's key made the certificate's signature."""
    key = ca.public_key()
    if certificate.issuer != ca.subject or certificate.signature_hash_algorithm is None:
        return False
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateError("the platform's CA has no elliptic-curve key; make it with playbooks/secrets.yml.")
    try:
        signature, content = certificate.signature, certificate.tbs_certificate_bytes
        key.verify(signature, content, ec.ECDSA(certificate.signature_hash_algorithm))
    except InvalidSignature:
        return False
    return True


def same_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether the certificate is of this key."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)


def reasons_to_renew(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    wanted: Wanted,
    now: datetime.datetime,
) -> list[str]:
    """Why a certificate no longer serves; empty where it does. `now` is in UTC without a zone."""
    reasons = []
    left = (not_after(certificate) - now).days
    if left < wanted.renew_days:
        reasons.append(f"expires in {left} days (renewed below {wanted.renew_days})")
    if not same_key(certificate, key):
        reasons.append("is not of this key")
    if not signed_by(certificate, ca):
        reasons.append("is not signed by this CA")
    try:
        have = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        have = set()
    want = set(general_names(wanted.names))
    if have != want:
        gone = sorted(str(name.value) for name in have - want)
        new = sorted(str(name.value) for name in want - have)
        reasons.append("names differ:" + "".join([f" +{name}" for name in new] + [f" -{name}" for name in gone]))
    return reasons
