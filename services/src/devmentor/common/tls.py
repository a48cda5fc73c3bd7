"""TLS contexts: ours both ways are mutual and trust the platform CA alone."""

import ssl
from pathlib import Path


def server_context(cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """A listener that asks for, and requires, a client certificate of `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A client that trusts `ca` alone, checks names and, given a key pair, shows it."""
    context = ssl.create_default_context(cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context
