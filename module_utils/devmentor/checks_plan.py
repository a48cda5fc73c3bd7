"""A host's plan (`checks_base.Plan`) made from inventory and roles, for action plugins on the control node."""

from __future__ import annotations

import collections.abc as c
import pathlib
from typing import Any

from . import inventory_view

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What a check authenticates with -> the role's variable that has it (not the vault's: an inventory may override it).
SECRETS = {
    "pbml_database_password": "postgres_pbml_password",
    "cache_password": "qwen_cache_password",
    "qdrant_api_key": "qdrant_read_only_api_key",
}
VARIABLES = (
    "devmentor_address",
    "devmentor_chat_model",
    "devmentor_embedding_model",
    "devmentor_ports",
    "devmentor_tls_ca",
    "devmentor_tls_cert",
    "devmentor_tls_key",
    "devmentor_vip",
    "qwen_api_keys",
    "qwen_cache_user",
    "qwen_models",
    *SECRETS.values(),
)


def plan_of_host(
    task_vars: c.Mapping[str, Any],
    loader: Any,
    templar: Any,
    run: str,
    patience: float = 30,
    certificate_days: int = 14,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The parameters of checks_base.Plan without `secrets`, and the secrets apart from them.

    loader and templar are Ansible's, as an action plugin has them. Raises KeyError and ValueError with what is missing.
    """

    def load(path: str) -> Any:
        return loader.load_from_file(path, cache="all", trusted_as_template=True)

    def template(values: Any, value: Any) -> Any:
        return templar.copy_with_new_env(available_variables=values).template(value)

    hostvars, groups = task_vars["hostvars"], task_vars["groups"]
    roles = inventory_view.load_roles(ROOT / "roles", load)
    extra = {"groups": groups, "hostvars": hostvars}
    name = str(task_vars["inventory_hostname"])
    me = inventory_view.host_view(name, hostvars.raw_get(name), roles, extra, template, VARIABLES)
    if me.errors:
        raise ValueError("; ".join(f"{variable}: {error}" for variable, error in me.errors.items()))
    values = me.values

    def address(host: str) -> str:
        raw = hostvars.raw_get(host)
        return str(inventory_view.host_view(host, raw, roles, extra, template, VARIABLES[:1]).values[VARIABLES[0]])

    offline = set(groups.get("offline", []))
    peers = {
        group: {str(host): address(host) for host in groups.get(group, []) if host not in offline}
        for group in ("postgres", "qdrant", "monitoring")
    }
    absent = {
        group: {str(host): address(host) for host in groups.get(group, []) if host in offline}
        for group in ("postgres", "pgbouncer", "qdrant")
    }
    keys = values["qwen_api_keys"]
    if not keys:
        raise ValueError("qwen_api_keys is empty; make secrets adds the keys of devmentor_tenants")
    secrets = {secret: str(values[variable]) for secret, variable in SECRETS.items()}
    # Any tenant will do: the document and the question of verify are deleted or unique.
    secrets["api_key"] = str(keys[sorted(keys)[0]])
    plan = {
        "host": name,
        "address": str(values["devmentor_address"]),
        "groups": [group for group in me.groups if group != "all"],
        "peers": peers,
        "absent": absent,
        "ports": dict(values["devmentor_ports"]),
        "tls": {part: str(values[f"devmentor_tls_{part}"]) for part in ("ca", "cert", "key")},
        "run": run,
        "vip": str(values.get("devmentor_vip") or ""),
        "embedding_model": str(values["devmentor_embedding_model"]),
        "cache_user": str(values["qwen_cache_user"]),
        "engine_url": str(values["qwen_models"][values["devmentor_chat_model"]]["url"]),
        "replicated_row": set(peers["postgres"]) <= {str(host) for host in task_vars["ansible_play_hosts_all"]},
        "patience": patience,
        "certificate_days": certificate_days,
    }
    return plan, secrets
