"""PostgreSQL settings from memory, cores and disk.

Sources, named beside each setting:
- pgtune: le0pard/pgtune, src/features/configuration/configurationSlice.js, type "web".
- manual: the PostgreSQL 17 manual, chapter 19 "Server Configuration", with its section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

KIB, MIB, GIB = 1024, 1024**2, 1024**3
WAL_SEGMENT = 16 * MIB
MINIMUM_MEMORY = 128 * MIB
UNKNOWN_DISK = 20 * GIB  # where the file system's size is not known: small enough not to fill any real disk
RANDOM_PAGE_COST = {"ssd": 1.1, "hdd": 4.0, "san": 1.1}  # pgtune
IO_CONCURRENCY = {"ssd": 200, "hdd": 2, "san": 300}  # pgtune


def memory_limit(resources: Mapping[str, Any], scale: float, host_mib: int) -> int:
    """Bytes that PostgreSQL may use: its slice's MemoryMax times the scale, or all of a smaller host."""
    return int(min(float(resources["memory_max_gib"]) * scale * GIB, host_mib * MIB))


def cpu_limit(resources: Mapping[str, Any], scale: float, host_cpus: int) -> int:
    """Whole cores that PostgreSQL may use, at least one."""
    return max(1, min(host_cpus, math.ceil(float(resources["cpu_max"]) * scale)))


def filesystem_bytes(mounts: Sequence[Mapping[str, Any]], path: str) -> int | None:
    """Size of the file system that holds `path`, from ansible_facts.mounts; None where it is not listed."""
    best, size = "", None
    for mount in mounts:
        point = str(mount.get("mount", "")).rstrip("/")
        if (path == point or path.startswith(point + "/")) and len(point) >= len(best) and mount.get("size_total"):
            best, size = point, int(mount["size_total"])
    return size


def wal_bounds(disk: int) -> dict[str, int]:
    """Bytes of WAL by purpose, as parts of the disk. All of it lies in one pg_wal, so they overlap and do not add up.

    max_wal_size and min_wal_size are pgtune's 4 GB and 1 GB, less on small disks. keep lets a replica follow a new
    primary whose slot for it is not in use yet. slots bounds what a lost replica holds back, archive what a lost object
    store does (manual 19.6.1, max_slot_wal_keep_size: unbounded by default, and a full pg_wal stops the server).
    """
    largest = _segments(min(4 * GIB, max(disk * 5 // 100, 8 * WAL_SEGMENT)))
    return {
        "max_wal_size": largest,
        "min_wal_size": _segments(max(largest // 4, 5 * WAL_SEGMENT)),
        "keep": _segments(min(GIB, max(disk * 2 // 100, 4 * WAL_SEGMENT))),
        "slots": _segments(min(64 * GIB, max(disk * 20 // 100, 2 * largest))),
        "archive": _segments(min(64 * GIB, max(disk * 20 // 100, 2 * largest))),
    }


def postgres_tuning(
    resources: Mapping[str, Any],
    facts: Mapping[str, Any],
    scale: float = 1.0,
    max_connections: int = 200,
    max_worker_processes: int = 16,
    storage: str = "ssd",
    data_path: str = "/var/lib/postgresql",
) -> dict[str, str]:
    """Settings for one host.

    resources: {cpu_max, memory_max_gib} of the slice. facts: ansible_facts with memtotal_mb, processor_vcpus, mounts.
    max_connections and max_worker_processes are inputs and no results: a replica refuses to run with less than its
    primary (manual 26.4.3), so they are the same on all hosts and never follow one host's cores.
    """
    try:
        memory = memory_limit(resources, float(scale), int(facts["memtotal_mb"]))
        cpus = cpu_limit(resources, float(scale), int(facts["processor_vcpus"]))
    except KeyError as error:
        raise AnsibleFilterError(f"postgres_tuning: {error} is missing. Gather the subset hardware first.") from error
    if storage not in RANDOM_PAGE_COST:
        raise AnsibleFilterError(f"postgres_tuning: storage {storage!r} is none of {sorted(RANDOM_PAGE_COST)}.")
    if memory < MINIMUM_MEMORY:
        raise AnsibleFilterError(f"postgres_tuning: {memory // MIB} MiB for PostgreSQL, at least 128 are needed.")
    wal = wal_bounds(filesystem_bytes(facts.get("mounts") or [], data_path) or UNKNOWN_DISK)
    shared = memory // 4  # pgtune; manual 19.4.1: 25 % of memory is a reasonable start
    # pgtune; manual 19.4.1: each backend may use several times work_mem
    work = (memory - shared) // ((max_connections + max_worker_processes) * 3)
    maintenance = min(memory // 16, 8 * GIB)  # pgtune
    settings = {
        "shared_buffers": _kib(shared),
        "huge_pages": "try" if shared >= 2 * GIB else "off",  # pgtune
        "effective_cache_size": _kib(memory * 3 // 4),  # pgtune
        "work_mem": _kib(max(work, MIB)),  # pgtune without its 4 MB floor: that breaks MemoryMax on small slices
        "maintenance_work_mem": _kib(maintenance),
        "autovacuum_work_mem": _kib(min(maintenance, 2 * GIB)),  # pgtune: several workers use it at once
        "wal_buffers": _kib(_wal_buffers(shared)),
        "checkpoint_completion_target": "0.9",  # pgtune; manual 19.5.2
        "max_wal_size": _mib(wal["max_wal_size"]),
        "min_wal_size": _mib(wal["min_wal_size"]),
        "wal_keep_size": _mib(wal["keep"]),
        "max_slot_wal_keep_size": _mib(wal["slots"]),
        "wal_compression": "lz4",  # pgtune
        "random_page_cost": f"{RANDOM_PAGE_COST[storage]:g}",
        "effective_io_concurrency": str(IO_CONCURRENCY[storage]),
        "jit": "off",  # pgtune: short statements pay for it
    }
    # pgtune: parallel query below four cores is left at the defaults, but never above the cores there are
    settings["max_parallel_workers"] = str(cpus)
    settings["max_parallel_workers_per_gather"] = str(min(4, math.ceil(cpus / 2)) if cpus >= 4 else min(2, cpus - 1))
    settings["max_parallel_maintenance_workers"] = str(min(4, math.ceil(cpus / 2)) if cpus >= 4 else min(2, cpus))
    return settings


def postgres_archive_bound(facts: Mapping[str, Any], data_path: str = "/var/lib/postgresql") -> int:
    """Bytes of WAL that may wait for the archive before it is given up (pgBackRest's archive-push-queue-max)."""
    return wal_bounds(filesystem_bytes(facts.get("mounts") or [], data_path) or UNKNOWN_DISK)["archive"]


def _wal_buffers(shared: int) -> int:
    """3 % of shared_buffers between 32 kB and one segment; from 14 MB on the whole segment (pgtune; manual 19.5.1)."""
    size = shared * 3 // 100
    return WAL_SEGMENT if size > 14 * MIB else max(size, 32 * KIB)


def _segments(size: int) -> int:
    return size // WAL_SEGMENT * WAL_SEGMENT


def _kib(size: int) -> str:
    return f"{size // KIB}kB"


def _mib(size: int) -> str:
    return f"{size // MIB}MB"


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"postgres_tuning": postgres_tuning, "postgres_archive_bound": postgres_archive_bound}
