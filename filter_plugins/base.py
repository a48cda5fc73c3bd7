"""What a host gets from its groups: components, packages, slices, names. Pure functions, tested in tests/unit/base."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

# A standby host is prepared as what it stands by for.
STANDS_FOR = {"qwen_standby": "qwen"}
GIB = 1024**3


class Resources(TypedDict):
    """A row of SCALING's resource table: CPU in cores, memory in GiB."""

    cpu_min: float
    cpu_max: float
    memory_min_gib: float
    memory_max_gib: float


class Slice(TypedDict):
    """systemd's limits of a slice: weight 1 to 10000, quota in percent of one core, memory in bytes."""

    name: str
    cpu_weight: int
    memory_low: int
    cpu_quota: NotRequired[int]
    memory_max: NotRequired[int]


class Operator(TypedDict):
    """A person's account: a login name and the SSH public keys that open it."""

    name: str
    authorized_keys: list[str]


def host_components(group_names: Iterable[str]) -> list[str]:
    """The components a host carries, sorted: its groups, a standby group counted as what it stands for."""
    return sorted({STANDS_FOR.get(group, group) for group in group_names})


def host_packages(packages: Mapping[str, list[str]], group_names: Iterable[str]) -> list[str]:
    """The sorted union of the package lists of `all` and of a host's components."""
    return sorted({name for key in ["all", *host_components(group_names)] for name in packages.get(key, [])})


def packages_to_install(packages: Iterable[str], installed: Iterable[str], versions: Mapping[str, str]) -> list[str]:
    """What apt is to install of a list: what is not there yet, `name=version` where the inventory has a version."""
    return [_at_version(name, versions) for name in packages if name not in set(installed)]


def packages_at_versions(packages: Iterable[str], versions: Mapping[str, str]) -> list[str]:
    """The list as apt takes it: `name=version` where the inventory has a version."""
    return [_at_version(name, versions) for name in packages]


def _at_version(name: str, versions: Mapping[str, str]) -> str:
    return f"{name}={versions[name]}" if name in versions else name


def package_changes(lines: Iterable[str], versions: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Installed packages that have another version than the inventory: name -> {before, after}.

    A line is dpkg-query's `Status-Want Status-Status Package Version`; a package that is not installed is not changed:
    its role installs it, at the right version.
    """
    found = {}
    for line in lines:
        _, status, name, version = line.split(" ")
        if status == "installed" and versions.get(name, version) != version:
            found[name] = {"before": version, "after": versions[name]}
    return dict(sorted(found.items()))


def package_lines(changes: Mapping[str, Mapping[str, str]]) -> str:
    """`haproxy 3.0.1-1 -> 3.0.2-1, ...`, as an operator reads it."""
    return ", ".join(f"{name} {change['before']} -> {change['after']}" for name, change in changes.items())


def hold_gaps(packages: Iterable[str], guarded: Iterable[str], held: Iterable[str], hold: bool) -> list[str]:
    """Of the packages of a host those that are to be held and are not; with `hold` off, those that still are."""
    ours = set(packages) & set(guarded)
    return sorted(ours - set(held) if hold else ours & set(held))


def host_slices(resources: Mapping[str, Resources], group_names: Iterable[str], scale: float) -> list[Slice]:
    """The slices of a host: one per component of the table, and their parent `devmentor` first.

    Minimum -> CPUWeight and MemoryLow, maximum -> CPUQuota and MemoryMax, times `scale`. Weights are relative, so they
    are not scaled: 100 a core. A slice competes within its parent and its MemoryLow acts up to its parent's, so the
    parent carries the sums.
    """
    if scale <= 0:
        raise ValueError(f"devmentor_resource_scale is {scale}: it must be above 0.")
    slices: list[Slice] = []
    for component in host_components(group_names):
        row = resources.get(component)
        if row is None:
            continue
        slices.append(
            {
                "name": f"devmentor-{component}",
                "cpu_weight": min(10000, max(1, round(100 * row["cpu_min"]))),
                "cpu_quota": max(1, round(100 * row["cpu_max"] * scale)),
                "memory_low": round(row["memory_min_gib"] * scale * GIB),
                "memory_max": round(row["memory_max_gib"] * scale * GIB),
            }
        )
    if not slices:
        return []
    weight = min(10000, sum(part["cpu_weight"] for part in slices))
    return [{"name": "devmentor", "cpu_weight": weight, "memory_low": sum(p["memory_low"] for p in slices)}, *slices]


def slice_files(slices: Iterable[Slice]) -> list[dict[str, str]]:
    """The unit files (as `config_files` takes them) of `host_slices`."""
    files = []
    for part in slices:
        lines = ["# Role base: SCALING's resource table times devmentor_resource_scale.", "[Slice]"]
        lines += [f"CPUWeight={part['cpu_weight']}", f"MemoryLow={part['memory_low']}"]
        if "cpu_quota" in part:
            lines.append(f"CPUQuota={part['cpu_quota']}%")
        if "memory_max" in part:
            lines.append(f"MemoryMax={part['memory_max']}")
        files.append({"path": f"/etc/systemd/system/{part['name']}.slice", "content": "\n".join(lines) + "\n"})
    return files


def slice_units(slices: Iterable[Slice]) -> list[dict[str, str]]:
    """The units (as `service_units` takes them) of `host_slices`."""
    return [{"name": f"{part['name']}.slice"} for part in slices]


def hosts_lines(addresses: Mapping[str, str]) -> str:
    """Lines for /etc/hosts from name -> address; names whose address is itself a name are left to DNS."""
    lines = []
    for name, address in sorted(addresses.items()):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            continue
        short = name.split(".", 1)[0]
        lines.append(f"{address} {name}" if short == name else f"{address} {name} {short}")
    return "\n".join(lines)


def operator_accounts(operators: Iterable[Operator]) -> dict[str, list[dict[str, Any]]]:
    """Users, directories and files (as `config_files` takes them) for operators' accounts with sudo."""
    accounts: dict[str, list[dict[str, Any]]] = {"users": [], "directories": [], "files": []}
    for operator in operators:
        name = operator["name"]
        home, own = f"/home/{name}", {"owner": name, "group": name}
        accounts["users"].append(
            {"name": name, "groups": ["devmentor-operators"], "home": home, "shell": "/bin/bash", "system": False}
        )
        accounts["directories"] += [
            {"path": home, "mode": "0750", **own},
            {"path": f"{home}/.ssh", "mode": "0700", **own},
        ]
        keys = "".join(f"{key.strip()}\n" for key in operator["authorized_keys"])
        accounts["files"].append({"path": f"{home}/.ssh/authorized_keys", "content": keys, "mode": "0600", **own})
    if accounts["users"]:
        accounts["files"].append(
            {
                "path": "/etc/sudoers.d/devmentor-operators",
                "content": "%devmentor-operators ALL=(ALL:ALL) NOPASSWD: ALL\n",
                "mode": "0440",
                "validate": "visudo -cf %s",
            }
        )
    return accounts


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "host_components": host_components,
            "hold_gaps": hold_gaps,
            "host_packages": host_packages,
            "host_slices": host_slices,
            "hosts_lines": hosts_lines,
            "operator_accounts": operator_accounts,
            "package_changes": package_changes,
            "package_lines": package_lines,
            "packages_at_versions": packages_at_versions,
            "packages_to_install": packages_to_install,
            "slice_files": slice_files,
            "slice_units": slice_units,
        }
