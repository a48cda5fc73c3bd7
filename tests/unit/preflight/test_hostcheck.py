"""Whether a machine can carry its groups: pure comparisons, and the readers against this machine."""

from __future__ import annotations

import os
import pathlib
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from module_utils.devmentor import hostcheck
from module_utils.devmentor.hostcheck import GIB, Disk, Listener
from module_utils.devmentor.rollout import Lock

TRIXIE = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\nID=debian\n'


def test_the_operating_system() -> None:
    assert hostcheck.check_os(TRIXIE, ["13"]) == []
    (finding,) = hostcheck.check_os(TRIXIE.replace("13", "12"), ["13"])
    assert finding.problem == "is debian 12, its groups need Debian 13"
    assert hostcheck.check_os(TRIXIE.replace("13", "12"), ["12", "13"]) == []
    assert "unknown unknown" in hostcheck.check_os("", ["13"])[0].problem


def test_the_machine() -> None:
    assert hostcheck.check_machine("x86_64", "systemd", 0, (3, 13)) == []
    whats = [finding.what for finding in hostcheck.check_machine("aarch64", "init", 1000, (3, 9))]
    assert whats == ["architecture", "init", "ansible_become", "python3"]


NEEDS = [{"group": "qdrant", "cores": 4, "memory_gib": 16}, {"group": "qwen", "cores": 2, "memory_gib": 8}]


def test_minima_above_the_machine() -> None:
    assert hostcheck.check_capacity(6, 24 * GIB, NEEDS) == []
    assert hostcheck.check_capacity(6, int(23.3 * GIB), NEEDS) == [], "a machine sold as 24 GiB shows a little less"
    cores, memory = hostcheck.check_capacity(4, 8 * GIB, NEEDS)
    assert cores.problem == "the minima of qdrant + qwen are 6 cores, the host has 4"
    assert memory.problem == "the minima of qdrant + qwen are 24 GiB of memory, the host has 8.0"
    assert "devmentor_resource_scale" in cores.remedy
    assert hostcheck.check_capacity(1, GIB, []) == []


def disk(path: str, device: int, free: float, capacity: float = 100.0, inodes: int | None = 10**6) -> Disk:
    return Disk(path, device, int(free * GIB), int(capacity * GIB), inodes)


def test_a_full_disk_is_said_once_per_file_system_by_the_path_that_lacks_most() -> None:
    wanted = [
        {"path": "/", "free_gib": 1, "capacity_gib": 0},
        {"path": "/var/lib", "free_gib": 2, "capacity_gib": 0},
        {"path": "/data", "free_gib": 1, "capacity_gib": 50},
    ]
    disks = {"/": disk("/", 1, 0.5), "/var/lib": disk("/var/lib", 1, 0.5), "/data": disk("/data", 2, 5, capacity=20)}
    findings = hostcheck.check_disks(wanted, disks)
    assert [(f.what, f.problem) for f in findings] == [
        ("disk /var/lib", "0.50 GiB are free, 2 are needed"),
        ("disk /data", "the file system has 20.0 GiB, 50 are needed"),
    ]
    roomy = {path: disk(path, 1, 60) for path in disks}
    assert hostcheck.check_disks(wanted, roomy) == []


def test_no_inodes_left() -> None:
    wanted = [{"path": "/", "free_gib": 0, "capacity_gib": 0}]
    assert "inodes" in hostcheck.check_disks(wanted, {"/": disk("/", 1, 50, inodes=5)})[0].problem
    assert hostcheck.check_disks(wanted, {"/": disk("/", 1, 50, inodes=None)}) == [], "btrfs counts none"


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/devmentor.slice/devmentor-gateway.slice/haproxy.service",
        "0::/system.slice/haproxy.service",
        "1:name=systemd:/system.slice/haproxy.service\n0::/",
    ],
)
def test_our_own_service_may_hold_its_port(cgroup: str) -> None:
    listener = Listener("443/tcp", "haproxy", 7, cgroup)
    assert hostcheck.check_ports([listener], {"443/tcp": "gateway"}, ["haproxy.service"]) == []


def test_a_foreign_process_on_our_port_is_named() -> None:
    found = hostcheck.check_ports(
        [
            Listener("9094/udp", "", None, ""),
            Listener("443/tcp", "apache2", 7, "0::/system.slice/apache2.service"),
            Listener("80/tcp", "apache2", 7, "0::/x"),
        ],
        {"443/tcp": "gateway", "9094/tcp": "alertmanager_mesh", "9094/udp": "alertmanager_mesh"},
        ["haproxy.service"],
    )
    assert [(f.what, f.problem) for f in found] == [
        ("port 443/tcp (gateway)", "is held by apache2 (pid 7)"),
        ("port 9094/udp (alertmanager_mesh)", "is held by a process that cannot be named"),
    ]


def test_the_virtual_address_is_in_a_network_of_the_gateway() -> None:
    assert hostcheck.check_vip("10.1.0.9", ["10.1.0.2/24"]) == []
    assert hostcheck.check_vip("", []) == []
    (finding,) = hostcheck.check_vip("10.2.0.9", ["10.1.0.2/24"])
    assert finding.problem == "10.2.0.9 is in none of the host's networks (10.1.0.2/24)"


def test_the_clock_is_compared_with_both_readings_of_the_control_node() -> None:
    assert hostcheck.check_clock(host=100.0, before=90.0, after=101.0) == [], "a slow connection is not a wrong clock"
    assert hostcheck.check_clock(host=104.0, before=90.0, after=100.0) == []
    assert hostcheck.check_clock(host=160.0, before=90.0, after=100.0)[0].problem == "is 60 s ahead of the control node"
    assert hostcheck.check_clock(host=20.0, before=90.0, after=100.0)[0].problem == "is 70 s behind the control node"


def test_reading_this_machine() -> None:
    assert hostcheck.read_memory() > GIB
    missing = hostcheck.read_disk("/var/lib/devmentor/not/there/yet")
    assert missing.capacity > missing.free > 0


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_who_listens_on_this_machine(protocol: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            server.listen()
        port = f"{server.getsockname()[1]}/{protocol}"
        (listener,) = hostcheck.read_listeners({port})
        assert (listener.port, listener.pid) == (port, os.getpid())
    assert hostcheck.read_listeners({port}) == []


def test_the_module_returns_findings_and_does_not_fail(run_module: Callable[..., dict[str, Any]]) -> None:
    result = run_module(
        "host_preflight",
        debian=["1"],
        needs=[{"group": "qdrant", "cores": 4096, "memory_gib": 1}],
        disks=[{"path": "/", "free_gib": 10**6}],
        ports={"1/tcp": "nothing"},
    )
    assert not result["failed"]
    assert not result["changed"]
    whats = [finding["what"] for finding in result["findings"]]
    assert "operating system" in whats
    assert "devmentor_resources" in whats
    assert "disk /" in whats
    assert set(result["findings"][0]) == {"what", "problem", "remedy"}


def test_a_rolling_update_that_holds_its_lock(tmp_path: pathlib.Path) -> None:
    assert hostcheck.check_rollout_lock(tmp_path / "none") == []
    Lock(tmp_path).acquire("r1", "anna@c1")
    os.utime(tmp_path / "lock.json", (time.time() - 750,) * 2)
    (finding,) = hostcheck.check_rollout_lock(tmp_path)
    assert finding.problem == "r1 of anna@c1 has held its lock for 12 min"
    assert "-e rollout_take_over=r1; -e rollout_ignore_lock=true goes on regardless" in finding.remedy
    (tmp_path / "lock.json").write_text("")
    (finding,) = hostcheck.check_rollout_lock(tmp_path)
    assert f"cannot be read: {tmp_path}/lock.json" in finding.problem
