"""What there is to roll to: another release of the same sources, Debian's packages packed again under a higher version,
and another setting of Qdrant, of which there is one version."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.qwen.deployed import Deployed
from tests.integration.newer_packages import SUFFIX, installed, offer

# Package -> the group whose hosts have it. PostgreSQL's own takes minutes to pack.
GROUPS = {
    "pgbouncer": "pgbouncer",
    "valkey-server": "cache",
    "haproxy": "gateway",
    "prometheus": "monitoring",
    "prometheus-node-exporter": "all",
    "postgresql-17": "postgres",
}
PACKAGES = ("pgbouncer", "valkey-server", "haproxy", "prometheus", "prometheus-node-exporter")


def packages(deployed: Deployed, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Host -> package -> its newer version, which the host's next `apt-get update` finds. Raises LabError.

    A host gets one archive with all of its packages: a second one would replace the first. What is newer already is
    taken back to Debian's. Hosts of another Debian release have other versions.
    """
    wanted: dict[str, list[str]] = {}
    versions: dict[str, dict[str, str]] = {}
    for name in names:
        for host in deployed.hosts(GROUPS[name]):
            newer = installed(host, name).removesuffix(SUFFIX) + SUFFIX
            versions.setdefault(host.name, {})[name] = newer
            wanted.setdefault(host.name, []).append(name)
    by_packages: dict[tuple[str, ...], list[str]] = {}
    for host, its in wanted.items():
        by_packages.setdefault(tuple(its), []).append(host)
    with ThreadPoolExecutor(max(1, len(by_packages))) as pool:
        for done in [
            pool.submit(offer, [deployed.lab.host(host) for host in hosts], list(its))
            for its, hosts in by_packages.items()
        ]:
            done.result()
    return versions


def variables(label: str, versions: dict[str, dict[str, str]]) -> list[str]:
    """The words for ansible-playbook, with the versions of each host."""
    given: dict[str, object] = {
        "devmentor_release_label": label,
        "qdrant_max_request_size_mb": 33 + zlib.crc32(label.encode()) % 64,
    }
    if versions:
        given["bench_package_versions"] = versions
        given["devmentor_package_versions"] = "{{ bench_package_versions[inventory_hostname] | default({}) }}"
    return ["--extra-vars", json.dumps(given)]
