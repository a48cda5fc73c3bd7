"""Makes a host's plan from inventory and roles, and turns a host that cannot be asked into a row of the table."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor import checks_base, inventory_view

ROOT = pathlib.Path(__file__).resolve().parents[1]

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


class ActionModule(ActionBase):  # type: ignore[misc]
    """Never fails and is never unreachable: any_errors_fatal would keep the other hosts from being asked."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        try:
            plan, secrets = self.plan(variables)
        except (KeyError, ValueError) as error:
            return self.unknown(result, variables, f"no plan could be made: {error}")
        try:
            answer = self._execute_module(module_args={"plan": plan, "secrets": secrets}, task_vars=variables)
        except AnsibleConnectionFailure as error:
            return self.unknown(result, variables, f"unreachable: {_last_line(str(error))}")
        if answer.get("failed") or "rows" not in answer:
            reason = answer.get("module_stderr") or answer.get("module_stdout") or answer.get("msg") or "no output"
            return self.unknown(result, variables, f"the checks did not run: {_last_line(str(reason))}")
        return {**result, **answer}

    def unknown(self, result: dict[str, Any], task_vars: dict[str, Any], reason: str) -> dict[str, Any]:
        host = str(task_vars["inventory_hostname"])
        row = {"component": "host", "host": host, "check": "answers", "result": checks_base.UNKNOWN, "evidence": reason}
        return {**result, "changed": False, "rows": [row], "facts": {}}

    def plan(self, task_vars: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The parameters of checks_base.Plan, and the secrets apart from them."""

        def load(path: str) -> Any:
            return self._loader.load_from_file(path, cache="all", trusted_as_template=True)

        def template(values: Any, value: Any) -> Any:
            return self._templar.copy_with_new_env(available_variables=values).template(value)

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
            "run": str(self._task.args["run"]),
            "vip": str(values.get("devmentor_vip") or ""),
            "embedding_model": str(values["devmentor_embedding_model"]),
            "cache_user": str(values["qwen_cache_user"]),
            "engine_url": str(values["qwen_models"][values["devmentor_chat_model"]]["url"]),
            "replicated_row": set(peers["postgres"]) <= {str(host) for host in task_vars["ansible_play_hosts_all"]},
            "patience": float(self._task.args.get("patience", 30)),
            "certificate_days": int(self._task.args.get("certificate_days", 14)),
        }
        return plan, secrets


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
