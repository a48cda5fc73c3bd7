"""The inventory and the roles as plain data (`platform_model.Platform`), for action plugins on the control node.

Role defaults are not in `hostvars`, so they are read from the roles' files and laid underneath.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import pathlib
import re
from typing import Any

from .platform_model import Host, Platform

# Names whose default matters to preflight and verify, and is a template.
_TEMPLATED_DEFAULTS = (
    "devmentor_address",
    "devmentor_allow_small",
    "devmentor_artifacts",
    "devmentor_artifacts_generated",
    "devmentor_communication_matrix",
    "devmentor_disk_minimum",
    "devmentor_footprint",
    "devmentor_platform_name",
    "devmentor_ports",
    "devmentor_resource_scale",
    "devmentor_resources",
    "devmentor_tls_ca",
    "devmentor_tls_cert",
    "devmentor_tls_key",
    "devmentor_vip",
    "devmentor_zone",
    "llamacpp_instances",
    "pbml_tenants",
    "postgres_bootstrap_primary",
    "qwen_api_keys",
    "qwen_database_hosts",
)

_VAULT_REFERENCE = re.compile(r"\b(vault_\w+)\b(?!\s*\|\s*(?:ansible\.builtin\.)?(?:default|d)\b)")

Template = c.Callable[[c.Mapping[str, Any], Any], Any]


@dataclasses.dataclass(frozen=True)
class Roles:
    """What the roles' own files say: options, defaults (untemplated) and the secrets that they refer to."""

    specs: c.Mapping[str, c.Mapping[str, c.Mapping[str, Any]]]
    defaults: c.Mapping[str, Any]
    secrets: c.Mapping[str, frozenset[str]]


def _files(role: pathlib.Path, kind: str) -> list[pathlib.Path]:
    one = role / kind / "main.yml"
    return [one] if one.is_file() else sorted((role / kind / "main").glob("*.yml"))


def load_roles(directory: pathlib.Path, load: c.Callable[[str], Any]) -> Roles:
    """Read every role's argument specs, defaults and vars. `load` parses a YAML file into trusted templates."""
    specs: dict[str, dict[str, Any]] = {}
    defaults: dict[str, Any] = {}
    secrets: dict[str, frozenset[str]] = {}
    for role in sorted(path for path in directory.iterdir() if path.is_dir()):
        spec_file = role / "meta" / "argument_specs.yml"
        points = (load(str(spec_file)) or {}).get("argument_specs", {}) if spec_file.is_file() else {}
        specs[role.name] = {k: v for point in points.values() for k, v in (point.get("options") or {}).items()}
        names: set[str] = set()
        for path in _files(role, "defaults") + _files(role, "vars"):
            defaults.update(load(str(path)) or {})
            names |= vault_references(path.read_text())
        secrets[role.name] = frozenset(names)
    return Roles(specs, defaults, secrets)


def vault_references(text: str) -> frozenset[str]:
    """The vault_* names that a text refers to without giving a default for them."""
    return frozenset(_VAULT_REFERENCE.findall(text))


def host_view(
    name: str,
    raw: c.Mapping[str, Any],
    roles: Roles,
    extra: c.Mapping[str, Any],
    template: Template,
    names: c.Collection[str] = (),
) -> Host:
    """One host: `raw` are its untemplated variables, `extra` the magic ones that they may refer to.

    Evaluates what the inventory gives and the defaults that matter here, or only `names`.
    """
    merged = {**roles.defaults, **raw, **extra}
    known = {option for options in roles.specs.values() for option in options}
    wanted = [key for key in names if key in merged]
    if not names:
        wanted = [key for key in raw if key in known or key.startswith("vault_") or key in ("zone", "ansible_host")]
        needed = [*_TEMPLATED_DEFAULTS, *(key for key in known if key.endswith(("_artifact", "_artifacts")))]
        wanted += [key for key in needed if key in merged and key not in wanted]
    values: dict[str, Any] = dict(merged)
    errors: dict[str, str] = {}
    for key in wanted:
        try:
            values[key] = template(merged, merged[key])
        except Exception as error:
            errors[key] = str(error)
            values.pop(key, None)
    hidden = frozenset(key for key in wanted if key.startswith("vault_") or "vault_" in str(merged[key]))
    groups = tuple(str(group) for group in raw.get("group_names", ()))
    return Host(name, groups, values, frozenset(raw), errors, hidden)


def platform_view(
    hosts: c.Mapping[str, c.Mapping[str, Any]],
    groups: c.Mapping[str, c.Sequence[str]],
    roles: Roles,
    extra: c.Mapping[str, Any],
    template: Template,
    inventory: str,
) -> Platform:
    """Every host of the inventory, also those outside of --limit: the platform's shape is not a matter of the run."""
    views = {name: host_view(name, raw, roles, extra, template) for name, raw in hosts.items()}
    return Platform(views, groups, roles.specs, roles.secrets, inventory)
