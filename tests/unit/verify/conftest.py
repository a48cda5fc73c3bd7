"""The certificates that verify's tests speak TLS with, made once for all of them."""

from __future__ import annotations

import datetime
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A CA and a host certificate for 127.0.0.1 as role pki lays them out."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)

    def sign(name: str, issuer: str, key: Any, signer: Any, ca: bool) -> Any:
        import ipaddress

        builder = x509.CertificateBuilder()
        builder = builder.subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        builder = builder.issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=30, minutes=5))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return builder.add_extension(names, False).sign(signer, hashes.SHA256())

    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "host")}
    paths = {"ca": folder / "ca.crt", "cert": folder / "host.crt", "key": folder / "host.key"}
    pem = serialization.Encoding.PEM
    paths["ca"].write_bytes(sign("ca", "ca", keys["ca"], keys["ca"], True).public_bytes(pem))
    paths["cert"].write_bytes(sign("h1", "ca", keys["host"], keys["ca"], False).public_bytes(pem))
    paths["key"].write_bytes(
        keys["host"].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {name: str(path) for name, path in paths.items()}
