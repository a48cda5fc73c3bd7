"""The platform as an inventory describes it, in plain data: hosts, groups and their sizes, roles and their options."""

from __future__ import annotations

import collections.abc as c
import dataclasses
from typing import Any

# Group -> (fewest, most) hosts; None means no bound. The table of docs/architecture.md.
GROUP_SIZES: dict[str, tuple[int, int | None]] = {
    "gateway": (2, 2),
    "qwen": (3, 10),
    "qwen_standby": (0, None),
    "vllm": (0, None),
    "pbml": (3, 3),
    "cache": (2, 2),
    "qdrant": (3, 3),
    "postgres": (4, 4),
    "pgbouncer": (2, 2),
    "monitoring": (2, 2),
    "objectstore": (0, 1),
    "spare": (0, None),
}

# Group -> the group whose hosts may take its place at any time: they have its ports and its rights from the start.
STANDBY = {"qwen": "qwen_standby"}

# Role -> the groups on whose hosts it runs; a role that is not listed runs on the group of its name.
ROLE_GROUPS: dict[str, tuple[str, ...]] = {
    "platform": ("all",),
    "base": ("all",),
    "pki": ("all",),
    "firewall": ("all",),
    "exporters": ("all",),
    "pgbackrest": ("postgres",),
    "pgagent": ("postgres", "pgbouncer"),
    "llamacpp": ("qwen", "qwen_standby", "pbml"),
    "qwen": ("qwen", "qwen_standby"),
    "prometheus": ("monitoring",),
    "alertmanager": ("monitoring",),
}


@dataclasses.dataclass(frozen=True)
class Host:
    """A host as the inventory describes it.

    `values` are the templated variables, role defaults included; `given` names those that the inventory or `-e` set;
    `errors` holds, for a variable that could not be templated, Ansible's reason; `hidden` names what holds secrets.
    """

    name: str
    groups: tuple[str, ...]
    values: c.Mapping[str, Any]
    given: frozenset[str] = frozenset()
    errors: c.Mapping[str, str] = dataclasses.field(default_factory=dict)
    hidden: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Platform:
    """The whole inventory and what the roles say about their variables.

    `specs`: role -> option -> its argument spec. `secrets`: role -> the vault_* names that its defaults refer to.
    `inventory` is how an operator names it in a remedy.
    """

    hosts: c.Mapping[str, Host]
    groups: c.Mapping[str, c.Sequence[str]]
    specs: c.Mapping[str, c.Mapping[str, c.Mapping[str, Any]]]
    secrets: c.Mapping[str, frozenset[str]]
    inventory: str = "inventories/lab"

    def members(self, group: str) -> list[str]:
        return list(self.hosts) if group == "all" else [h for h in self.groups.get(group, ()) if h in self.hosts]

    def role_hosts(self, role: str) -> list[str]:
        wanted = {host for group in ROLE_GROUPS.get(role, (role,)) for host in self.members(group)}
        return [host for host in self.hosts if host in wanted]

    @property
    def small_allowed(self) -> bool:
        return any(host.values.get("devmentor_allow_small") is True for host in self.hosts.values())
