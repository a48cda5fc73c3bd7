"""What a teardown removes: never data unless asked, never more than is there, the same again after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from module_utils.devmentor import teardown
from module_utils.devmentor.platform_model import GROUP_SIZES
from module_utils.devmentor.teardown import Current

ROOT = Path(__file__).resolve().parents[3]
FOOTPRINT: dict[str, Any] = yaml.safe_load((ROOT / "roles/platform/defaults/main/footprint.yml").read_text())[
    "devmentor_footprint"
]
PACKAGES: dict[str, list[str]] = yaml.safe_load((ROOT / "roles/platform/defaults/main/packages.yml").read_text())[
    "devmentor_packages"
]
EVERYTHING = frozenset(p for entry in FOOTPRINT.values() for kind in ("paths", "data") for p in entry.get(kind, []))
DATA = {path for entry in FOOTPRINT.values() for path in entry.get("data", [])}


RUNNING = ("devmentor.slice", "devmentor-postgres.slice", "haproxy.service", "postgresql@17-main.service")


def current(**changes: Any) -> Current:
    values: dict[str, Any] = {
        "active_units": frozenset({*RUNNING, "ssh.service"}),
        "enabled_units": frozenset({"haproxy.service"}),
        "unit_files": frozenset({"haproxy.service.d", "qdrant.service", "getty.target.wants", "devmentor.slice"}),
        "packages": frozenset({"haproxy", "postgresql-17", "openssl"}),
        "paths": EVERYTHING,
    }
    return Current(**{**values, **changes})


GROUPS = ["gateway", "postgres", "all"]


def test_data_stays_unless_asked() -> None:
    kept = teardown.decide(FOOTPRINT, list(FOOTPRINT), current(), remove_data=False)
    for path in kept.paths:
        assert not any(data == path or data.startswith(path + "/") for data in DATA), path
    assert not kept.purge
    gone = teardown.decide(FOOTPRINT, list(FOOTPRINT), current(), remove_data=True)
    assert set(gone.paths) >= DATA
    assert gone.purge


def test_gateways_stop_before_databases_and_slices_last() -> None:
    todo = teardown.decide(FOOTPRINT, GROUPS, current(), remove_data=False)
    assert todo.stop == (
        "haproxy.service",
        "postgresql@17-main.service",
        "devmentor-postgres.slice",
        "devmentor.slice",
    )
    assert todo.disable == ("haproxy.service",)
    assert todo.packages == ("haproxy", "postgresql-17")


def test_only_files_of_the_hosts_groups_go() -> None:
    todo = teardown.decide(FOOTPRINT, GROUPS, current(), remove_data=False)
    units = [path for path in todo.paths if path.startswith("/etc/systemd/system/")]
    assert units == ["/etc/systemd/system/devmentor.slice", "/etc/systemd/system/haproxy.service.d"]
    assert "/etc/valkey" not in todo.paths


def test_nothing_left_is_nothing_to_do() -> None:
    empty = Current(frozenset(), frozenset(), frozenset(), frozenset(), frozenset())
    todo = teardown.decide(FOOTPRINT, list(FOOTPRINT), empty, remove_data=True)
    assert not todo.anything
    assert todo.lines() == []


def test_after_an_interruption_the_rest_is_done() -> None:
    stopped = current(active_units=frozenset(), packages=frozenset({"postgresql-17"}))
    todo = teardown.decide(FOOTPRINT, GROUPS, stopped, remove_data=False)
    assert todo.stop == ()
    assert todo.packages == ("postgresql-17",)
    assert todo.lines()[0] == "disable: haproxy.service"


def test_the_footprint_knows_every_group_and_only_packages_of_the_platform() -> None:
    assert set(FOOTPRINT) == (set(GROUP_SIZES) - {"spare"}) | {"all"}
    for group, entry in FOOTPRINT.items():
        assert set(entry.get("packages", [])) <= set(PACKAGES.get(group, [])), group
        assert set(entry) <= {"units", "packages", "paths", "data"}
