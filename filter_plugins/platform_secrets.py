"""What playbooks/secrets.yml generates: the list of secrets, and values for those that are missing."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from typing import Any

ALPHABET = string.ascii_letters + string.digits  # safe in every config format and URL the platform writes

# Name -> length in characters. 40 characters of this alphabet are 238 bits.
LENGTHS = {
    "vault_postgres_replication_password": 40,
    "vault_postgres_monitoring_password": 40,
    "vault_postgres_pbml_password": 40,
    "vault_postgres_qwen_password": 40,
    "vault_pgbouncer_auth_password": 40,
    "vault_pgbouncer_admin_password": 40,
    "vault_pgagent_token": 48,
    "vault_cache_password": 40,
    "vault_cache_exporter_password": 40,
    "vault_qdrant_api_key": 40,
    "vault_qdrant_read_only_api_key": 40,
    "vault_objectstore_access_key": 20,
    "vault_objectstore_secret_key": 40,
    "vault_pgbackrest_cipher_passphrase": 48,
    "vault_keepalived_password": 8,  # VRRP's limit; it guards against mistakes, not against attackers
    "vault_admin_api_key": 48,
}
API_KEY_LENGTH = 48


def random_text(length: int) -> str:
    """`length` characters of ALPHABET from the system's random source."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def complete_secrets(stored: dict[str, Any], tenants: Iterable[str], given: Iterable[str] = ()) -> dict[str, Any]:
    """`stored` with a new value for every secret that is in neither `stored` nor `given`.

    `given` names variables that the inventory sets elsewhere. What is stored is never replaced; an API key is added for
    each tenant that has none. The CA is not made here: it needs X.509.
    """
    known = {*stored, *given}
    complete = stored | {name: random_text(length) for name, length in LENGTHS.items() if name not in known}
    if "vault_api_keys" not in set(given) - set(stored):
        keys = dict(stored.get("vault_api_keys") or {})
        complete["vault_api_keys"] = {tenant: f"dm-{random_text(API_KEY_LENGTH)}" for tenant in tenants} | keys
    return complete


def new_secrets(complete: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Names (never values) of what `complete` has and `stored` has not; `vault_api_keys.<tenant>` for API keys."""
    names = [name for name in complete if name not in stored and name != "vault_api_keys"]
    old = stored.get("vault_api_keys") or {}
    tenants = [tenant for tenant in complete.get("vault_api_keys") or {} if tenant not in old]
    return sorted(names + [f"vault_api_keys.{tenant}" for tenant in tenants])


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"complete_secrets": complete_secrets, "new_secrets": new_secrets}
