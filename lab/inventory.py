"""The hosts of a lab, read from a standard Ansible YAML inventory.

Only what the lab itself needs is read: host names, groups and the plain `lab_*` variables. Templates are Ansible's
business, so a `lab_*` value must be literal.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab.errors import InventoryError

SUITES = ("trixie", "bookworm")
LAYERS = ("bare", "baked")
GENERATED = "lab.generated.yml"
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAX_HOSTS = 200


@dataclass(frozen=True)
class HostSpec:
    """One host as the inventory wants it.

    Memory in MiB and processors in cores; None is no limit of its own.
    """

    name: str
    suite: str = "trixie"
    layer: str = "bare"
    memory_mib: int | None = None
    cpus: float | None = None
    autostart: bool = True
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inventory:
    file: Path
    hosts: Mapping[str, HostSpec]

    @property
    def directory(self) -> Path:
        return self.file.parent

    @property
    def generated(self) -> Path:
        return inventory_variables(self.file)

    @property
    def generated_hosts(self) -> Path:
        return inventory_hosts(self.file)

    def select(self, limit: str | None) -> list[HostSpec]:
        """The hosts that `--limit` names (hosts or groups, separated by commas); all without one."""
        if limit is None:
            return list(self.hosts.values())
        wanted: list[HostSpec] = []
        for word in filter(None, (part.strip() for part in limit.split(","))):
            found = [host for host in self.hosts.values() if host.name == word or word in host.groups]
            if not found:
                raise InventoryError(f"{self.file} has no host or group `{word}`", closest(word, self.hosts))
            wanted.extend(host for host in found if host not in wanted)
        return wanted

    def host(self, name: str) -> HostSpec:
        if name not in self.hosts:
            raise InventoryError(f"{self.file} has no host `{name}`", closest(name, self.hosts))
        return self.hosts[name]


def closest(word: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"


@dataclass
class _Group:
    variables: dict[str, Any] = field(default_factory=dict)
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Reads inventories that hold Ansible's own tags (!vault, !unsafe), whose values the lab does not need."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def _load(path: Path) -> dict[str, Any]:
    text = path.read_text()
    if text.startswith("$ANSIBLE_VAULT"):
        return {}
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise InventoryError(f"{path} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InventoryError(f"{path} must hold a mapping, it holds a {type(data).__name__}")
    return data


def inventory_variables(hosts_file: Path) -> Path:
    """Where the lab writes what Ansible needs to know of it."""
    return hosts_file.parent / "group_vars" / "all" / GENERATED


def inventory_hosts(hosts_file: Path) -> Path:
    """Where the lab writes each host's connection, literally.

    An inventory source beside hosts.yml, which it overrides: a templated `ansible_host` would name the wrong host where
    a task is delegated (`inventory_hostname` stays that of the host delegated from), and testinfra does not template.
    """
    return hosts_file.parent / f"hosts.{GENERATED.removeprefix('lab.')}"


def inventory_file(path: Path) -> Path:
    """The hosts file of an inventory given as a file or as a directory."""
    if path.is_file():
        return path.resolve()
    for name in ("hosts.yml", "hosts.yaml"):
        if (path / name).is_file():
            return (path / name).resolve()
    raise InventoryError(f"no inventory at {path}", "give a hosts.yml, or a directory that holds one (--inventory)")


def expand(pattern: str) -> list[str]:
    """Ansible's numeric host ranges: `lab[1:4]` is lab1 to lab4, leading zeros are kept."""
    match = re.fullmatch(r"(.*)\[(\d+):(\d+)\](.*)", pattern)
    if not match:
        return [pattern]
    head, first, last, rest = match.groups()
    names = (f"{head}{number:0{len(first)}d}{rest}" for number in range(int(first), int(last) + 1))
    return [name for each in names for name in expand(each)]


def _collect(name: str, body: Any, groups: dict[str, _Group], file: Path) -> None:
    if body is None:
        body = {}
    if not isinstance(body, dict):
        raise InventoryError(f"{file}: group `{name}` must be a mapping")
    group = groups.setdefault(name, _Group())
    group.variables.update(body.get("vars") or {})
    for pattern, variables in (body.get("hosts") or {}).items():
        for host in expand(str(pattern)):
            group.hosts.setdefault(host, {}).update(variables or {})
    for child, child_body in (body.get("children") or {}).items():
        group.children.append(child)
        _collect(child, child_body, groups, file)


def _variable_files(directory: Path, name: str) -> Iterator[Path]:
    for suffix in ("", ".yml", ".yaml"):
        candidate = directory / f"{name}{suffix}"
        if candidate.is_file():
            yield candidate
        elif candidate.is_dir():
            yield from sorted(p for p in candidate.rglob("*") if p.suffix in (".yml", ".yaml") and p.name != GENERATED)


def _members(group: str, groups: dict[str, _Group]) -> set[str]:
    found = set(groups[group].hosts)
    for child in groups[group].children:
        found |= _members(child, groups)
    return found


def _depths(groups: dict[str, _Group]) -> dict[str, int]:
    """Distance from `all`: a nearer group's variables give way to a farther one's, as in Ansible."""
    depth = dict.fromkeys(groups, 1)
    depth["all"] = 0
    for _ in groups:
        for name, group in groups.items():
            for child in group.children:
                depth[child] = max(depth[child], depth[name] + 1)
    return depth


def read_inventory(path: Path) -> Inventory:
    """Read the hosts of an inventory file or directory, in the order in which it names them."""
    file = inventory_file(path)
    groups: dict[str, _Group] = {"all": _Group()}
    for name, body in _load(file).items():
        _collect(str(name), body, groups, file)

    order: dict[str, None] = {}
    for group in groups.values():
        order.update(dict.fromkeys(group.hosts))
    if not order:
        raise InventoryError(f"{file} names no hosts", "add them under `all: hosts:` or a group's `hosts:`")
    if len(order) > MAX_HOSTS:
        raise InventoryError(f"{file} names {len(order)} hosts, one lab network holds {MAX_HOSTS}")

    members = {name: _members(name, groups) for name in groups}
    members["all"] = set(order)
    depth = _depths(groups)
    ranked = sorted(groups, key=lambda name: (depth[name], name))

    shared: dict[str, dict[str, Any]] = {}
    for name in ranked:
        shared[name] = dict(groups[name].variables)
        for extra in _variable_files(file.parent / "group_vars", name):
            shared[name].update(_load(extra))

    hosts: dict[str, HostSpec] = {}
    for host in order:
        variables: dict[str, Any] = {}
        mine = [name for name in ranked if host in members[name]]
        for name in mine:
            variables.update(shared[name])
        for group in groups.values():
            variables.update(group.hosts.get(host, {}))
        for extra in _variable_files(file.parent / "host_vars", host):
            variables.update(_load(extra))
        hosts[host] = _host(host, variables, tuple(name for name in mine if name != "all"), file)
    return Inventory(file, hosts)


_KNOWN = ("lab_suite", "lab_layer", "lab_memory_mib", "lab_cpus", "lab_autostart")


def _host(name: str, variables: dict[str, Any], groups: tuple[str, ...], file: Path) -> HostSpec:
    if not HOST_NAME.fullmatch(name):
        raise InventoryError(f"{file}: `{name}` is not a host name", "use letters, digits and hyphens")
    for key in variables:
        if key.startswith("lab_") and key not in _KNOWN and (near := difflib.get_close_matches(key, _KNOWN, 1, 0.85)):
            raise InventoryError(f"{file}: host {name} has unknown variable `{key}`", f"did you mean `{near[0]}`?")

    def choice(key: str, choices: tuple[str, ...], default: str) -> str:
        value = variables.get(key, default)
        if value not in choices:
            raise InventoryError(f"{file}: host {name}: {key} is {value!r}", f"use one of: {', '.join(choices)}")
        return str(value)

    def positive(key: str, least: float, unit: str) -> float | None:
        value = variables.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            remedy = f"use a number of {unit}, at least {least}"
            raise InventoryError(f"{file}: host {name}: {key} is {value!r}", remedy)
        return value

    autostart = variables.get("lab_autostart", True)
    if not isinstance(autostart, bool):
        raise InventoryError(f"{file}: host {name}: lab_autostart is {autostart!r}", "use true or false")
    memory = positive("lab_memory_mib", 128, "MiB")
    return HostSpec(
        name=name,
        suite=choice("lab_suite", SUITES, "trixie"),
        layer=choice("lab_layer", LAYERS, "bare"),
        memory_mib=None if memory is None else int(memory),
        cpus=positive("lab_cpus", 0.1, "cores"),
        autostart=autostart,
        groups=groups,
    )
