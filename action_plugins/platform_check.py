"""Makes a host's plan from inventory and roles, and turns a host that cannot be asked into a row of the table."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.devmentor import checks, inventory_view  # noqa: E402

# What a check authenticates with -> the variable that has it. Roles' variables, not vault names: an inventory may
# override them.
SECRETS = {
    "pbml_database_password": "vault_postgres_pbml_password",
    "cache_user": "qwen",
    "cache_password": "vault_cache_password",
    "qdrant_api_key": "vault_qdrant_read_only_api_key",
}


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
        row = {"component": "host", "host": host, "check": "answers", "result": checks.UNKNOWN, "evidence": reason}
        return {**result, "changed": False, "rows": [row], "facts": {}}

    def plan(self, task_vars: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The parameters of checks.Plan, and the secrets apart from them."""

        def load(path: str) -> Any:
            return self._loader.load_from_file(path, cache="all", trusted_as_template=True)

        def template(values: Any, value: Any) -> Any:
            return self._templar.copy_with_new_env(available_variables=values).template(value)

        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        roles = inventory_view.load_roles(ROOT / "roles", load)
        extra = {"groups": groups, "hostvars": hostvars}
        name = str(task_vars["inventory_hostname"])
        me = inventory_view.host_view(name, hostvars.raw_get(name), roles, extra, template)
        values = me.values

        def address(host: str) -> str:
            view = inventory_view.host_view(
                host, hostvars.raw_get(host), roles, extra, template, names=("devmentor_address",)
            )
            return str(view.values["devmentor_address"])

        offline = set(groups.get("offline", []))
        peers = {
            group: {str(host): address(host) for host in groups.get(group, []) if host not in offline}
            for group in ("postgres", "qdrant", "monitoring")
        }
        keys = values.get("vault_api_keys") or {}
        secrets = {"api_key": str(keys[sorted(keys)[0]]) if keys else ""}
        for secret, variable in SECRETS.items():
            secrets[secret] = str(values.get(variable, "")) if variable.startswith("vault_") else variable
        plan = {
            "host": name,
            "address": str(values["devmentor_address"]),
            "groups": [group for group in me.groups if group != "all"],
            "peers": peers,
            "ports": dict(values["devmentor_ports"]),
            "tls": {part: str(values[f"devmentor_tls_{part}"]) for part in ("ca", "cert", "key")},
            "run": str(self._task.args["run"]),
            "vip": str(values.get("devmentor_vip") or ""),
            "engine_port": int(values["devmentor_ports"]["llamacpp_chat"]),
            "replicated_row": set(peers["postgres"]) <= {str(host) for host in task_vars["ansible_play_hosts_all"]},
            "patience": float(self._task.args.get("patience", 30)),
            "certificate_days": int(self._task.args.get("certificate_days", 14)),
        }
        return plan, secrets


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
