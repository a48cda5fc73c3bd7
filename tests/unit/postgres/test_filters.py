"""The tuning filter against its sources, and the plan filter against Ansible's variables."""

import pytest
from ansible.errors import AnsibleFilterError

from filter_plugins.postgres import postgres_cidr, postgres_plan, postgres_quorum, postgres_slots
from filter_plugins.postgres_tuning import (
    GIB,
    MIB,
    filesystem_bytes,
    postgres_archive_bound,
    postgres_tuning,
    wal_bounds,
)

SCALING = {"cpu_min": 4, "cpu_max": 8, "memory_min_gib": 16, "memory_max_gib": 32}
TERABYTE = [{"mount": "/", "size_total": 50 * GIB}, {"mount": "/var/lib/postgresql", "size_total": 1000 * GIB}]


def facts(memory_mib: int = 65536, cpus: int = 16, mounts: list | None = None) -> dict:
    return {"memtotal_mb": memory_mib, "processor_vcpus": cpus, "mounts": TERABYTE if mounts is None else mounts}


def kib(text: str) -> int:
    assert text.endswith("kB")
    return int(text[:-2])


def test_scalings_host_as_pgtune_has_it():
    # pgtune, type web, 32 GB, 8 cores, 200 connections, SSD
    settings = postgres_tuning(SCALING, facts(), max_worker_processes=8)
    expected = {
        "shared_buffers": "8388608kB",
        "huge_pages": "try",
        "effective_cache_size": "25165824kB",
        "work_mem": "40329kB",
        "maintenance_work_mem": "2097152kB",
        "autovacuum_work_mem": "2097152kB",
        "wal_buffers": "16384kB",
        "checkpoint_completion_target": "0.9",
        "max_wal_size": "4096MB",
        "min_wal_size": "1024MB",
        "random_page_cost": "1.1",
        "effective_io_concurrency": "200",
        "max_parallel_workers": "8",
        "max_parallel_workers_per_gather": "4",
        "max_parallel_maintenance_workers": "4",
        "wal_compression": "lz4",
        "jit": "off",
    }
    assert {name: settings[name] for name in expected} == expected


def test_the_slice_bounds_memory_and_cores():
    scaled = postgres_tuning(SCALING, facts(), scale=0.05)
    assert kib(scaled["shared_buffers"]) == int(32 * 0.05 * 1024 * 1024) // 4
    assert scaled["max_parallel_workers"] == "1"
    assert scaled["max_parallel_workers_per_gather"] == "0"
    assert scaled["huge_pages"] == "off"


def test_a_smaller_host_bounds_them_too():
    settings = postgres_tuning(SCALING, facts(memory_mib=8192, cpus=2))
    assert kib(settings["shared_buffers"]) == 2 * 1024 * 1024
    assert settings["max_parallel_workers"] == "2"


@pytest.mark.parametrize("memory_mib", [128, 1024, 8192, 65536])
@pytest.mark.parametrize("connections", [50, 200, 1000])
def test_work_mem_fits_beside_shared_buffers(memory_mib, connections):
    settings = postgres_tuning(SCALING, facts(memory_mib=memory_mib), max_connections=connections)
    work = kib(settings["work_mem"])
    assert work >= 1024
    limit = min(memory_mib * 1024, 32 * 1024 * 1024)
    assert work == 1024 or kib(settings["shared_buffers"]) + work * connections * 3 <= limit


def test_what_a_replica_compares_does_not_follow_the_host():
    # A replica with a lower max_worker_processes or max_connections than its primary does not start.
    for settings in (postgres_tuning(SCALING, facts(cpus=2)), postgres_tuning(SCALING, facts(cpus=64))):
        assert not {"max_connections", "max_worker_processes", "max_wal_senders"} & set(settings)


@pytest.mark.parametrize("disk", [5 * GIB, 20 * GIB, 100 * GIB, 10_000 * GIB])
def test_wal_never_takes_the_whole_disk(disk):
    bounds = wal_bounds(disk)
    assert bounds["max_wal_size"] + max(bounds["slots"], bounds["archive"], bounds["keep"]) <= disk // 2
    assert bounds["min_wal_size"] <= bounds["max_wal_size"] <= bounds["slots"]
    assert all(size % (16 * MIB) == 0 for size in bounds.values())


def test_the_disk_is_the_one_under_the_data():
    assert filesystem_bytes(TERABYTE, "/var/lib/postgresql") == 1000 * GIB
    assert filesystem_bytes(TERABYTE, "/var/lib/postgresql-other") == 50 * GIB
    assert filesystem_bytes([], "/var/lib/postgresql") is None
    assert postgres_archive_bound({"mounts": []}) < postgres_archive_bound({"mounts": TERABYTE}) == 64 * GIB


@pytest.mark.parametrize(("storage", "cost"), [("ssd", "1.1"), ("hdd", "4"), ("san", "1.1")])
def test_storage(storage, cost):
    assert postgres_tuning(SCALING, facts(), storage=storage)["random_page_cost"] == cost


def test_bad_input_says_what_is_wrong():
    with pytest.raises(AnsibleFilterError, match="floppy"):
        postgres_tuning(SCALING, facts(), storage="floppy")
    with pytest.raises(AnsibleFilterError, match="Gather the subset hardware"):
        postgres_tuning(SCALING, {})
    with pytest.raises(AnsibleFilterError, match="64 MiB"):
        postgres_tuning(SCALING, facts(memory_mib=64))


REPORT = {
    "data": "present",
    "running": True,
    "standby": True,
    "system_identifier": "7",
    "timeline": 1,
    "error": "",
    "seeded": [],
}
KEY = "__postgres_discovered"


def test_the_plan_is_made_from_this_runs_reports():
    hostvars = {
        "a": {KEY: {"instance": {**REPORT, "standby": False, "seeded": ["synchronous_standby_names"]}}},
        "b": {KEY: {"unreachable": True, "msg": "Connection timed out"}},
        "c": {},
    }
    hostvars["a"]["__postgres_discovered_elsewhere"] = {"results": [{"item": "c", "instance": REPORT}]}
    hostvars["b"]["__postgres_discovered_elsewhere"] = {"results": [{"item": "c", "skipped": True}]}
    plan = postgres_plan(["a", "b", "c", "d"], hostvars, "b", ["a"])
    assert plan["primary"] == "a"
    assert plan["synchronous_seeded"]
    assert plan["actions"] == {"a": "keep", "c": "keep"}
    assert plan["unknown"]["b"] == "Connection timed out"
    assert "d" in plan["unknown"]


def test_a_host_that_failed_first_and_answered_later_counts_as_it_answered():
    elsewhere = {"results": [{"item": "a", "instance": {**REPORT, "standby": False}}]}
    hostvars = {
        "a": {KEY: {"failed": True, "msg": "boom"}},
        "b": {KEY: {"instance": REPORT}, "__postgres_discovered_elsewhere": elsewhere},
    }
    assert postgres_plan(["a", "b"], hostvars, "a", ["b"])["primary"] == "a"


def test_names_for_templates():
    assert postgres_slots(["db-1", "db-2"], "db-1") == ["db_2"]
    assert postgres_quorum(["a", "b", "c", "d"], "b") == 'ANY 2 ("a", "c", "d")'
    with pytest.raises(AnsibleFilterError, match="share the slot"):
        postgres_slots(["db-1", "db_1"], "x")


@pytest.mark.parametrize(
    ("address", "cidr"),
    [("192.0.2.1", "192.0.2.1/32"), ("2001:db8::1", "2001:db8::1/128"), ("db1.example", "db1.example")],
)
def test_hba_addresses(address, cidr):
    assert postgres_cidr(address) == cidr
