"""What a teardown removes from a host, decided from what is there: pure, so an interrupted one simply runs again."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import fnmatch
from typing import Any

# Stopping order: what takes requests first, what others store in last.
GROUP_ORDER = (
    "gateway",
    "qwen",
    "qwen_standby",
    "pbml",
    "cache",
    "qdrant",
    "pgbouncer",
    "postgres",
    "monitoring",
    "objectstore",
    "all",
)
UNIT_DIRECTORY = "/etc/systemd/system"


@dataclasses.dataclass(frozen=True)
class Current:
    """A host as it is: loaded units, names of unit files and drop-in folders of ours, packages, paths that exist."""

    active_units: frozenset[str]
    enabled_units: frozenset[str]
    unit_files: frozenset[str]
    packages: frozenset[str]
    paths: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Removal:
    """What is left to do, in this order. `purge` also removes a package's own configuration and data."""

    stop: tuple[str, ...]
    disable: tuple[str, ...]
    packages: tuple[str, ...]
    purge: bool
    paths: tuple[str, ...]

    @property
    def anything(self) -> bool:
        return bool(self.stop or self.disable or self.packages or self.paths)

    def lines(self) -> list[str]:
        """For the result: one line per kind of thing."""
        return [
            f"{verb}: {', '.join(names)}"
            for verb, names in (
                ("stop", self.stop),
                ("disable", self.disable),
                ("purge packages" if self.purge else "remove packages", self.packages),
                ("delete", self.paths),
            )
            if names
        ]


def select(footprint: c.Mapping[str, Any], groups: c.Collection[str]) -> list[tuple[str, c.Mapping[str, Any]]]:
    """The footprint's entries for a host's groups, in stopping order."""
    return [(group, footprint[group]) for group in GROUP_ORDER if group in groups and group in footprint]


def decide(
    footprint: c.Mapping[str, Any], groups: c.Collection[str], current: Current, remove_data: bool
) -> Removal:
    """Compare what the groups leave on a host with what is there. Data is touched only with `remove_data`."""
    entries = [entry for _, entry in select(footprint, groups)]
    patterns = [pattern for entry in entries for pattern in entry.get("units", [])]
    kinds = ["paths", "data"] if remove_data else ["paths"]
    keep = [] if remove_data else [path for entry in footprint.values() for path in entry.get("data", [])]
    paths = [path for entry in entries for kind in kinds for path in entry.get(kind, [])]
    paths = [path for path in paths if path in current.paths and not any(_inside(kept, path) for kept in keep)]
    files = [f"{UNIT_DIRECTORY}/{name}" for name in sorted(current.unit_files) if _unit_of(name, patterns)]
    return Removal(
        stop=_in_order(patterns, current.active_units),
        disable=_in_order(patterns, current.enabled_units),
        packages=tuple(
            package for entry in entries for package in entry.get("packages", []) if package in current.packages
        ),
        purge=remove_data,
        paths=tuple(dict.fromkeys([*files, *paths])),
    )


def _in_order(patterns: c.Sequence[str], units: c.Collection[str]) -> tuple[str, ...]:
    """The units that a pattern matches, in the order of the patterns; slices last, since the others run in them."""
    chosen = [unit for pattern in patterns for unit in sorted(units) if fnmatch.fnmatch(unit, pattern)]
    return tuple(sorted(dict.fromkeys(chosen), key=lambda unit: unit.endswith(".slice")))


def _unit_of(name: str, patterns: c.Sequence[str]) -> bool:
    """Whether a file or drop-in folder below /etc/systemd/system belongs to a unit of ours."""
    return any(fnmatch.fnmatch(name.removesuffix(".d"), pattern) for pattern in patterns)


def _inside(kept: str, path: str) -> bool:
    """Whether deleting `path` would take `kept` with it."""
    return kept == path or kept.startswith(path.rstrip("/") + "/")
