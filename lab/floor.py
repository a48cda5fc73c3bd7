"""The floor under every deployment time: the same packages, installed by plain shell on all hosts at once."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from lab.bake import packages_for, read_package_lists
from lab.errors import HostStateError
from lab.host import Host
from lab.lifecycle import each
from lab.progress import Progress

SCRIPT = r"""
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
# As in the deployment: packages do not start their services.
printf 'exit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
apt-get update
apt-get install -y --no-install-recommends "$@"
rm /usr/sbin/policy-rc.d
"""


@dataclass(frozen=True)
class HostFloor:
    seconds: float
    installed: int  # packages that apt newly installed, dependencies included


@dataclass(frozen=True)
class Floor:
    seconds: float  # until the last host was done
    hosts: dict[str, HostFloor]


def measure(hosts: list[Host], progress: Progress) -> Floor:
    """Install, on bare running hosts, what the platform installs for each one's groups."""
    lists = read_package_lists()

    def install(host: Host) -> HostFloor:
        began = time.monotonic()
        wanted = packages_for(host.spec.groups, lists)
        output = host.execute(["sh", "-c", SCRIPT, "floor", *wanted]).stdout
        count = re.search(r"(\d+) newly installed", output)
        if count is None or count.group(1) == "0":
            raise HostStateError(
                f"{host.name} has the packages already", "measure on bare hosts: lab down, lab up --bare"
            )
        return HostFloor(round(time.monotonic() - began, 1), int(count.group(1)))

    began = time.monotonic()
    with progress.step(f"installing packages by plain shell on {len(hosts)} hosts"):
        results = each(hosts, install)
    return Floor(round(time.monotonic() - began, 1), results)
