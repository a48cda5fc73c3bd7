"""What a host says of its versions, and which packages a role or a rolling update has apt install and dpkg hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from filter_plugins.base import hold_gaps, package_changes, package_lines, packages_at_versions, packages_to_install
from module_utils.devmentor import versions
from module_utils.devmentor.versions import Package

ROOT = Path(__file__).resolve().parents[3]
VERSIONS = {"haproxy": "3.0.1-1"}


def release(root: Path, app: str, identity: str) -> None:
    (root / app / "releases" / identity).mkdir(parents=True)
    (root / app / "current").symlink_to(f"releases/{identity}")
    (root / app / "release.json").write_text(f'{{"id": "{identity}"}}')


def qdrant(root: Path, units: Path, identity: str) -> None:
    (root / "qdrant/releases" / identity).mkdir(parents=True, exist_ok=True)
    units.mkdir(exist_ok=True)
    start = f"ExecStart=/launcher /storage {root}/qdrant/releases/{identity}/qdrant --config-path /c"
    (units / "qdrant.service").write_text(f"[Service]\n{start}\n")


def test_what_is_missing_is_installed_at_the_inventorys_version() -> None:
    assert packages_to_install(["acl", "haproxy", "socat"], ["acl"], VERSIONS) == ["haproxy=3.0.1-1", "socat"]
    assert packages_at_versions(["haproxy", "socat"], VERSIONS) == ["haproxy=3.0.1-1", "socat"]


def test_only_what_is_installed_at_another_version_is_changed() -> None:
    lines = [
        "hold installed haproxy 2.9.0-1",
        "install installed keepalived 1:2.3",
        "deinstall config-files socat 1.0",
        "unknown not-installed pgbouncer ",
    ]
    wanted = {**VERSIONS, "keepalived": "1:2.3", "socat": "2.0", "pgbouncer": "1.24", "valkey-server": "8"}
    changes = package_changes(lines, wanted)
    assert changes == {"haproxy": {"before": "2.9.0-1", "after": "3.0.1-1"}}
    assert package_lines(changes) == "haproxy 2.9.0-1 -> 3.0.1-1"
    assert package_changes(lines, {}) == {}


@pytest.mark.parametrize(
    ("held", "hold", "gaps"),
    [
        ([], True, ["haproxy", "pgbouncer"]),
        (["haproxy"], True, ["pgbouncer"]),
        (["haproxy", "acl"], False, ["haproxy"]),
    ],
)
def test_only_the_platforms_own_holds_are_looked_at(held: list[str], hold: bool, gaps: list[str]) -> None:
    assert hold_gaps(["acl", "pgbouncer", "haproxy"], ["haproxy", "pgbouncer", "prometheus"], held, hold) == gaps


def test_dpkg_says_what_is_installed() -> None:
    found = versions.installed(["dpkg", "no-such-package"])
    assert list(found) == ["dpkg"]
    assert found["dpkg"].version[0].isdigit()


def test_every_component_is_named_by_what_it_has(tmp_path: Path) -> None:
    release(tmp_path / "opt", "qwen", "2-b")
    release(tmp_path / "opt", "pbml", "1-a")
    (tmp_path / "opt/pbml/release.json").write_text('{"id": "2-b"}')  # a switch that was cut off
    qdrant(tmp_path / "opt", tmp_path / "units", "1.19.1")
    found = versions.versions(
        {"haproxy": Package("3.0.1-1", True), "acl": Package("2", False)},
        versions.releases(tmp_path / "opt"),
        versions.artefact_releases(tmp_path / "opt", tmp_path / "units"),
    )
    assert found == {"haproxy": "3.0.1-1", "qwen": "2-b", "qdrant": "1.19.1"}


def test_a_unit_of_a_release_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    qdrant(tmp_path / "opt", tmp_path / "units", "1.19.1")
    (tmp_path / "opt/qdrant/releases/1.19.1").rmdir()
    assert versions.artefact_releases(tmp_path / "opt", tmp_path / "units") == {}
    assert versions.artefact_releases(tmp_path / "opt", tmp_path / "nowhere") == {}


def test_the_metric_is_written_only_when_something_changed(tmp_path: Path) -> None:
    root, units, status, target = tmp_path / "opt", tmp_path / "units", tmp_path / "status", tmp_path / "v.prom"
    release(root, "qwen", "1-a")
    status.write_text("")
    for path in (status, root / "qwen/release.json", root / "qwen/current"):
        os.utime(path, (1000, 1000), follow_symlinks=False)
    assert versions.refresh(target, root, status, units)
    assert 'devmentor_version_info{component="qwen",version="1-a"} 1\n' in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o644
    assert not versions.refresh(target, root, status, units)
    (root / "qwen/releases/2-b").mkdir()
    (root / "qwen/current").unlink()
    (root / "qwen/current").symlink_to("releases/2-b")
    (root / "qwen/release.json").write_text('{"id": "2-b"}')
    assert versions.refresh(target, root, status, units)
    assert 'component="qwen",version="2-b"' in target.read_text()
    assert 'version="1-a"' not in target.read_text()


def test_labels_are_quoted() -> None:
    assert 'component="a",version="b\\"\\\\"} 1' in versions.exposition({"a": 'b"\\'})


@pytest.mark.parametrize("library", [True, False])
def test_slice_metrics_writes_it_beside_the_slices(tmp_path: Path, library: bool) -> None:
    release(tmp_path / "opt", "qwen", "1-a")
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin/systemctl"
    systemctl.write_text("#!/bin/sh\n")
    systemctl.chmod(0o755)
    environment = {**os.environ, "PATH": f"{systemctl.parent}:{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": str(ROOT / "module_utils" if library else tmp_path)}
    command = [
        sys.executable,
        ROOT / "roles/exporters/files/slice_metrics.py",
        tmp_path / "slices.prom",
        tmp_path / "opt",
    ]
    # -S: the services' own package devmentor must not stand in for the library of the facts.
    subprocess.run([command[0], "-S", *command[1:]], check=True, env=environment)
    assert (tmp_path / "slices.prom").exists()
    assert (tmp_path / "versions.prom").exists() == library
    if library:
        assert 'component="qwen",version="1-a"' in (tmp_path / "versions.prom").read_text()


def test_what_is_held_is_what_the_platform_installs() -> None:
    platform = yaml.safe_load((ROOT / "roles/platform/defaults/main/packages.yml").read_text())
    known = {name for names in platform["devmentor_packages"].values() for name in names}
    assert set(platform["devmentor_held_packages"]) <= known
    assert set(versions.PACKAGES.values()) <= set(platform["devmentor_held_packages"])


def test_what_is_held_has_a_tier_that_rolls_it() -> None:
    """Held and in no tier, a package would never get its security updates."""
    tiers = yaml.safe_load((ROOT / "roles/rollout/vars/main.yml").read_text())["__rollout_tiers"]
    platform = yaml.safe_load((ROOT / "roles/platform/defaults/main/packages.yml").read_text())
    rolled = {name for tier in tiers.values() for name in tier.get("packages", [])}
    assert rolled == set(platform["devmentor_held_packages"])
