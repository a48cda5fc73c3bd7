"""What there is to roll to: another release of the same sources, and Debian's packages packed again under a higher
version."""

from __future__ import annotations

import json
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


def packages(deployed: Deployed, names: Iterable[str]) -> dict[str, str]:
    """Package -> its newer version, which the hosts' next `apt-get update` finds. Raises LabError.

    A host gets one archive with all of its packages: a second one would replace the first. What is newer already stays
    as it is.
    """
    wanted: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for name in names:
        hosts = deployed.hosts(GROUPS[name])
        found = installed(hosts[0], name)
        versions[name] = found if found.endswith(SUFFIX) else found + SUFFIX
        if versions[name] != found:
            for host in hosts:
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


def variables(label: str, versions: dict[str, str]) -> list[str]:
    """The words for ansible-playbook."""
    given = {"devmentor_release_label": label, **({"devmentor_package_versions": versions} if versions else {})}
    return ["--extra-vars", json.dumps(given)]
