"""TLS contexts: ours both ways are mutual and trust the platform CA alone. `reload` renews all of them."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Files:
    ca: Path
    cert: Path | None
    key: Path | None

    def load_into(self, context: ssl.SSLContext) -> None:
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        context.load_verify_locations(self.ca)


_made: WeakKeyDictionary[ssl.SSLContext, _Files] = WeakKeyDictionary()


def server_context(cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """A listener that asks for, and requires, a client certificate of `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, _Files(ca, cert, key))


def client_context(ca: Path, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A client that trusts `ca` alone, checks names and, given a key pair, shows it."""
    return _loaded(ssl.create_default_context(cafile=str(ca)), _Files(ca, cert, key))


def _loaded(context: ssl.SSLContext, files: _Files) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    files.load_into(context)
    _made[context] = files
    return context


def reload() -> None:
    """Every context made here reads its files again: connections from now on use them, open ones stay as they are.

    A CA is added to those that were trusted before. Files that do not fit together leave their contexts as they were.
    """
    for context, files in list(_made.items()):
        try:
            # OpenSSL drops the former key while it takes up a certificate that does not fit it.
            files.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            files.load_into(context)
        except (OSError, ssl.SSLError) as error:
            log.error(
                "certificate not usable, the former one stays in force",
                extra={"file": str(files.cert or files.ca), "reason": str(error)},
            )
        else:
            log.info("certificate read again", extra={"file": str(files.cert or files.ca)})
