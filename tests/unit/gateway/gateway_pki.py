"""A throw-away CA and its hosts' certificates, in the files that the roles use."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Authority:
    """Writes `ca.crt` below its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.key = directory, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self.path = directory / "ca.crt"
        self.path.write_bytes(self.sign(self.name, self.key, basic).public_bytes(PEM))

    def sign(self, subject, key, *extensions):
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, host: str) -> Path:
        """Directory with host.pem (certificate, then key) and ca.crt, as in devmentor_tls_dir."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        directory = self.directory / host
        directory.mkdir()
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (directory / "host.pem").write_bytes(self.sign(subject, key, names).public_bytes(PEM) + private)
        (directory / "ca.crt").write_bytes(self.path.read_bytes())
        return directory
