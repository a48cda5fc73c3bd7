"""API keys of tenants: a file of SHA-256 digests, never the keys themselves."""

import hashlib
import hmac
import json
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from devmentor.common import context
from devmentor.common.errors import ApiError

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RECHECK_S = 1.0


class TenantsFileError(ValueError):
    """The tenants file cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """What a key may use, in tokens of prompts and answers; None is no limit."""

    key_sha256: bytes
    tokens_per_minute: int | None
    tokens_per_day: int | None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks, and the budget of the key that was shown."""

    name: str
    budget: TokenBudget | None = None


_BUDGET_FIELDS = ("tokens_per_minute", "tokens_per_day")


def parse_tenants(text: str, source: str) -> list[tuple[bytes, Tenant]]:
    """[{"tenant": NAME, "key_sha256": HEX}] to (digest, tenant) pairs; one tenant may have several keys.

    An entry may have `tokens_per_minute` and `tokens_per_day`: the budget of this key.
    """
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise TenantsFileError(f"{source}: not JSON: {error}") from error
    if not isinstance(entries, list):
        raise TenantsFileError(f"{source}: a list of objects is expected")
    found: dict[bytes, Tenant] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or set(entry) - set(_BUDGET_FIELDS) != {"tenant", "key_sha256"}:
            raise TenantsFileError(
                f"{source}: entry {number}: exactly the keys tenant and key_sha256 are expected, and where the key has "
                f"a budget {' or '.join(_BUDGET_FIELDS)}"
            )
        name, digest = entry["tenant"], entry["key_sha256"]
        if not isinstance(name, str) or not _TENANT.fullmatch(name):
            raise TenantsFileError(f"{source}: entry {number}: tenant must match {_TENANT.pattern}")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise TenantsFileError(f"{source}: entry {number}: key_sha256 must be 64 lower-case hex digits")
        if bytes.fromhex(digest) in found:
            raise TenantsFileError(f"{source}: entry {number}: this key was given before")
        found[bytes.fromhex(digest)] = Tenant(name, _budget(entry, f"{source}: entry {number}"))
    return list(found.items())


def _budget(entry: dict[str, Any], where: str) -> TokenBudget | None:
    limits = [entry.get(field) for field in _BUDGET_FIELDS]
    for field, limit in zip(_BUDGET_FIELDS, limits, strict=True):
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise TenantsFileError(f"{where}: {field} must be a positive integer")
    if limits == [None, None]:
        return None
    return TokenBudget(bytes.fromhex(entry["key_sha256"]), *limits)


def bearer_key(header: str | None) -> str:
    """The key of an `Authorization: Bearer KEY` header, or 401."""
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(
            401,
            "missing_api_key",
            "send your key as 'Authorization: Bearer KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return key.strip()


def key_digest(key: str) -> bytes:
    """What the tenants file holds of a key."""
    return hashlib.sha256(key.encode()).digest()


def key_matches(key: str, digest_hex: str) -> bool:
    """Constant-time comparison of a key with a stored digest (the admin key's, for one)."""
    return hmac.compare_digest(key_digest(key), bytes.fromhex(digest_hex))


class TenantKeys:
    """Keys from a file that is read again when it changed, so a new tenant needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_check = 0.0
        self._stamp = self._stat()
        self._entries = parse_tenants(path.read_text(), str(path))

    def _stat(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _RECHECK_S
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._entries = parse_tenants(self._path.read_text(), str(self._path))
                self._stamp = stamp
                log.info("tenants file read again", extra={"tenants": len(self._entries)})
        except (OSError, TenantsFileError) as error:
            log.error("tenants file not usable, the former keys stay in force", extra={"reason": str(error)})

    @property
    def budgeted(self) -> bool:
        """Whether any key has a budget."""
        return any(tenant.budget is not None for _, tenant in self._entries)

    def has(self, name: str) -> bool:
        """Whether a tenant of this name has a key."""
        self._refresh()
        return any(tenant.name == name for _, tenant in self._entries)

    def lookup(self, key: str) -> Tenant | None:
        """The key's tenant. Every entry is compared, so the time tells nothing about which one matched."""
        self._refresh()
        digest = key_digest(key)
        match: Tenant | None = None
        for known, tenant in self._entries:
            if hmac.compare_digest(digest, known):
                match = tenant
        return match

    def authenticate(self, request: Request) -> Tenant:
        """The tenant of a request, or 401; logs of this request carry its name from here on."""
        tenant = self.lookup(bearer_key(request.headers.get("authorization")))
        if tenant is None:
            raise ApiError(401, "invalid_api_key", "unknown API key", headers={"WWW-Authenticate": "Bearer"})
        context.tenant.set(tenant.name)
        return tenant
