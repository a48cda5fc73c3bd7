"""A client of one Qdrant peer, as PBML's index and QWEN's semantic cache open it."""

import warnings
from pathlib import Path

import httpx
from pydantic import SecretStr
from qdrant_client import AsyncQdrantClient

from devmentor.common.tls import client_context


def client(url: str, key: SecretStr | None, ca: Path | None, timeout_s: float) -> AsyncQdrantClient:
    """`timeout_s`: of a call, whole seconds, at least one. It connects with the first call."""
    with warnings.catch_warnings():
        # It warns of a key on a connection without TLS; only tests on loopback have one.
        warnings.simplefilter("ignore", UserWarning)
        return AsyncQdrantClient(
            url=url,
            api_key=key.get_secret_value() if key is not None else None,
            timeout=max(1, round(timeout_s)),
            check_compatibility=False,
            verify=client_context(ca) if ca is not None else True,
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16, keepalive_expiry=60),
        )
